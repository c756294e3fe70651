"""The plan of the house: imports go down, rooms keep to their trade, files and functions stay small."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.imports import PACKAGE, House, cycles

ROOMS = ("cli", "ui", "evaluation", "training", "run", "adapters", "models", "decode", "method")  # top to bottom
BASE = {"errors", "runtime", "paths", "system"}  # below all rooms
ENTRIES = {"app", PACKAGE, f"{PACKAGE}.__main__", f"{PACKAGE}.train"}  # above all rooms
READS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}  # calls that touch a file
LOADER = f"{PACKAGE}.decode.native.loader"  # builds and caches the C library: the one part of `decode` with files
LINES, FUNCTION, WORDS = 600, 120, 1000


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def rank(module: str) -> int:
    """The floor of a module: 0 for the base, more for higher ones."""
    if module in ENTRIES or module.endswith(".__main__"):
        return len(ROOMS) + 1
    room = module.split(".")[1]
    return 0 if room in BASE else len(ROOMS) - ROOMS.index(room)


def test_imports_go_down(house):
    assert not [str(i) for i in house.inner() if rank(i.importer) < rank(i.target)]


def test_no_circles_between_modules_or_rooms(house):
    modules = {(i.importer, i.target) for i in house.inner()}
    rooms = {(_room(a), _room(b)) for a, b in modules if _room(a) != _room(b)}
    assert not (found := cycles(modules)), f"these import each other: {found}"
    assert not (found := cycles(rooms)), f"these import each other: {found}"


def _room(module: str) -> str:
    """The package at the top that a module is in; an entry point, or a module at the top, stands alone."""
    return module if module.endswith(".__main__") else ".".join(module.split(".")[:2])


@pytest.mark.parametrize(
    "room",
    ["method", "run.report", "run.trace", "run.wire", "run.exports", "run.results.rows", "cli.replay", "cli.diff"],
)
def test_no_torch(house, room):
    """Not even through what it imports at its start; in itself nowhere."""
    inside = [name for name in house.files if name.startswith(f"{PACKAGE}.{room}")]
    assert inside
    ways = [" > ".join(way) for name in inside if (way := house.ways_to("torch", name))]
    assert not ways, "torch is imported by way of:\n" + "\n".join(ways)
    assert not [str(i) for i in house.imports if i.importer in inside and i.target.split(".")[0] == "torch"]


def test_the_engine_knows_no_text_and_no_page(house):
    inside = [i for i in house.imports if i.importer.startswith(f"{PACKAGE}.decode")]
    libraries = {"gradio", "gradio_client", "tokenizers", "sentencepiece"}
    assert not [str(i) for i in inside if i.target.split(".")[0] in libraries or "tokeniz" in i.target.lower()]


@pytest.mark.parametrize("room", ["method", "decode"])
def test_no_files(house, room):
    found = [
        f"{house.files[name].relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}"
        for name, tree in house.trees.items()
        if name.startswith(f"{PACKAGE}.{room}") and name != LOADER
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in READS
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_top_of_the_package_is_the_plan():
    top = ROOT / PACKAGE
    packages = {path.parent.name for path in top.glob("*/__init__.py")}
    modules = {path.stem for path in top.glob("*.py")} - {"__init__", "__main__", "train"}
    assert packages <= set(ROOMS) and modules <= BASE


def python_files() -> Iterator[Path]:
    """Every Python file of the repository, none of what is installed or built in it."""
    skipped = {"node_modules", "build", "dist", "__pycache__"}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith(".") or part in skipped for part in parts):
            yield path


def test_no_file_is_long():
    assert not [path for path in python_files() if len(path.read_text(encoding="utf-8").splitlines()) > LINES]


def test_no_function_is_long_without_a_reason():
    """A reason stands in the def's own lines: `# long: why`."""
    long = []
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = node.end_lineno - node.lineno + 1
                head = "\n".join(lines[node.lineno - 1 : node.body[0].lineno])
                if count > FUNCTION and "# long: " not in head:
                    long.append(f"{path}:{node.lineno} {node.name}: {count} lines and no reason")
    assert not long


def test_arguments_are_described_one_by_one():
    """An entry `a, b: words` is no parameter for the reference of the library."""
    found = []
    for path in (ROOT / PACKAGE).rglob("*.py"):
        for section in re.findall(r"^ +(?:Args|Attributes):\n((?: .*\n)+)", path.read_text(encoding="utf-8"), re.M):
            found += [f"{path.name}: {line}" for line in section.splitlines() if re.match(r" +\w+(, \w+)+: ", line)]
    assert not found


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if text.startswith("---\n"):  # a Space's settings
        text = text.split("\n---\n", 1)[1]
    assert len(text.split()) <= WORDS


HOUSE = {
    "lora_drop/__init__.py": "",
    "lora_drop/errors.py": "",
    "lora_drop/method/__init__.py": "",
    "lora_drop/method/a.py": "def f():\n    from lora_drop.decode import step\n",
    "lora_drop/decode/__init__.py": "",
    "lora_drop/decode/step.py": "import importlib\nimportlib.import_module('lora_drop.run.run')\n",
    "lora_drop/run/__init__.py": "from .run import go\n",
    "lora_drop/run/run.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lora_drop.cli.main\nimport torch\n"
    ),
    "lora_drop/cli/__init__.py": "",
    "lora_drop/cli/main.py": "from lora_drop import run\nfrom ..errors import Error\n",
}


def test_imports_are_seen_wherever_they_stand(tmp_path):
    """The reader itself, on a small house with a fault in each way of importing."""
    for name, text in HOUSE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    house = House(tmp_path)
    seen = {(i.importer, i.target): i.at_start for i in house.inner()}
    assert seen == {
        ("lora_drop.method.a", "lora_drop.decode.step"): False,
        ("lora_drop.decode.step", "lora_drop.run.run"): True,
        ("lora_drop.run", "lora_drop.run.run"): True,
        ("lora_drop.run.run", "lora_drop.cli.main"): False,
        ("lora_drop.cli.main", "lora_drop.run"): True,
        ("lora_drop.cli.main", "lora_drop.errors"): True,
    }
    upward = {one for one, other in seen if rank(one) < rank(other)}
    assert upward == {"lora_drop.method.a", "lora_drop.decode.step", "lora_drop.run.run"}
    assert cycles(set(seen)) == [["lora_drop.cli.main", "lora_drop.run", "lora_drop.run.run"]]
    assert house.ways_to("torch", "lora_drop.decode.step") == ["lora_drop.decode.step", "lora_drop.run.run"]
