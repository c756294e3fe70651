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
from lora_drop.adapters.bank import SUMS_NAME, WEIGHTS_NAME
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.faults import asked, facts, fresh, the_line

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("shipped")]


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_NAME)

    return damage


def _put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return _tensors(lambda tensors: tensors.update({name: tensor}))


def _header(length: int) -> Callable[[Path], None]:
    """The file says that its header has so many bytes."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS_NAME).read_bytes()
        (folder / WEIGHTS_NAME).write_bytes(length.to_bytes(8, "little") + data[8:])

    return damage


def _deep_header(folder: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text)


def _cut(percent: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS_NAME).read_bytes()
        (folder / WEIGHTS_NAME).write_bytes(data[: len(data) * percent // 100])

    return damage


A, B, GATE = (f"layers.2.{name}" for name in ("lora_A.weight", "lora_B.weight", "gate"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        *((_cut(percent), "are broken: adapter_model.safetensors") for percent in (0, 25, 50, 75)),
        (_header(2**63), "header too large"),
        (_header(100_000_001), "header too large"),
        (_header(0), "invalid JSON in header"),
        (_deep_header, "recursion limit exceeded"),
        (_tensors(lambda tensors: tensors.pop(GATE)), f"no tensor {GATE}"),
        (_put(A, torch.ones(64)), "layer 2 has A .64,., not of rank"),
        (_put(B, torch.ones(5)), "belong to another model: their tensors"),
        (_put(GATE, torch.ones(2, 2)), "belong to another model: their tensors"),
        (_put(A, torch.ones(4, 64, dtype=torch.int8)), "layer 2 holds int8 numbers, not float32"),
        (_put(GATE, torch.ones(64, dtype=torch.bool)), "layer 2 holds bool numbers, not float32"),
        (_put(B, torch.ones(64, 4, dtype=torch.complex64)), "layer 2 holds complex64 numbers, not float32"),
        (_put(A, torch.full((4, 64), 1e300, dtype=torch.float64)), "layer 2 holds NaN or infinity"),
        (_put(GATE, torch.full((64,), math.nan)), "layer 2 holds NaN or infinity"),
        (_put(B, torch.full((64, 4), math.nan).to(torch.float8_e4m3fn)), "layer 2 holds float8_e4m3fn numbers"),
    ],
)
def test_broken_adapters_end_no_later_run(bank_shelf, tmp_path, monkeypatch, damage, says):
    """As the page has it: shipped adapters that `auto` takes. Once they are whole again, so is the next run."""
    loaded = fresh("reference")
    before = facts(gather(run(loaded, asked())))
    shutil.copytree(bank_shelf, tmp_path / "shelf")
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "shelf")
    damage(tmp_path / "shelf" / "bank")
    (tmp_path / "shelf" / "bank" / SUMS_NAME).unlink()  # a bank from before there were any
    line = the_line(loaded, asked())
    assert re.search(says, line) and " bank " in line and str(tmp_path) not in line
    shutil.rmtree(tmp_path / "shelf")
    shutil.copytree(bank_shelf, tmp_path / "shelf")
    assert facts(gather(run(loaded, asked()))) == before
