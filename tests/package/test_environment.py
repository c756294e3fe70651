"""Each environment variable is read in one place, and docs/environment.md has all of them."""

import ast
import dataclasses
import re
from collections import defaultdict
from pathlib import Path

import pytest

from lora_drop.models.place import on_zero_gpu
from lora_drop.ui.serve.environment import in_space
from lora_drop.ui.serve.policy import Limits

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "app.py", *sorted((ROOT / "lora_drop").rglob("*.py"))]
READERS = ("positive_number", "read_variable")
LIMITS = {f"LORA_DROP_MAX_{field.name.upper()}" for field in dataclasses.fields(Limits)}


def _is_environ(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def _read(node: ast.AST) -> ast.AST | None:
    """The name that an expression looks up in the environment, as an expression."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if (node.func.attr in ("get", "setdefault", "pop") and _is_environ(node.func.value)) or (
            node.func.attr == "getenv"
        ):
            return node.args[0]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in READERS:
        return node.args[0]
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_environ(node.value):
        return node.slice
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        return node.left if _is_environ(node.comparators[0]) else None
    return None


def reads() -> dict[str, list[str]]:
    """Where each variable is read."""
    reads_of = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = _read(node)
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(name, ast.Constant):
                reads_of[name.value].append(place)
            elif isinstance(name, ast.JoinedStr) and path.name == "policy.py":
                for limit in LIMITS:
                    reads_of[limit].append(place)
            elif name is not None:
                assert isinstance(name, ast.Name) and path.name == "environment.py", f"{place}: which variable is it?"
    return reads_of


def test_each_variable_is_read_in_one_place():
    twice = {name: places for name, places in reads().items() if len(places) > 1}
    assert not twice


def test_the_table_has_them_all():
    text = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`([A-Z_]+)`", " ".join(rows))) == set(reads())


@pytest.mark.parametrize(("text", "is_one"), [("true", 1), ("True", 1), ("1", 1), ("t", 1), ("0", 0), ("", 0)])
def test_zero_gpu_is_read_as_spaces_reads_it(monkeypatch, text, is_one):
    monkeypatch.setenv("SPACES_ZERO_GPU", text)
    assert on_zero_gpu() == bool(is_one)


def test_in_space(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert not in_space()
    monkeypatch.setenv("SPACE_ID", "user/space")
    assert in_space()
