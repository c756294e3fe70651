"""Adapter folders that are damaged: one line, and no later run suffers."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_drop.adapters import find
from lora_drop.adapters.hub import SUMS_NAME, WEIGHTS_NAME
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.faults import asked, facts, fresh, the_line

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("shipped")]


def _put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        save_file(load_file(path) | {name: tensor}, path)

    return damage


def _deep_header(path: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "are broken: adapter_model.safetensors"),
        (_deep_header, "recursion limit exceeded"),
        (_put("layers.2.lora_B.weight", torch.ones(5)), "belong to another model: their tensors"),
        (_put("layers.2.gate", torch.full((64,), math.nan)), "layer 2 holds NaN or infinity"),
    ],
)
def test_broken_adapters_end_no_later_run(bank_shelf, tmp_path, monkeypatch, damage, says):
    """As the page has it: shipped adapters that `auto` takes. Once they are whole again, so is the next run.

    tests/corpus/adapters has many more kinds of damage.
    """
    loaded = fresh("reference")
    before = facts(gather(run(loaded, asked())))
    shutil.copytree(bank_shelf, tmp_path / "shelf")
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "shelf")
    damage(tmp_path / "shelf" / "bank" / WEIGHTS_NAME)
    (tmp_path / "shelf" / "bank" / SUMS_NAME).unlink()  # a bank from before there were any
    line = the_line(loaded, asked())
    assert re.search(says, line) and " bank " in line and str(tmp_path) not in line
    shutil.rmtree(tmp_path / "shelf")
    shutil.copytree(bank_shelf, tmp_path / "shelf")
    assert facts(gather(run(loaded, asked()))) == before
