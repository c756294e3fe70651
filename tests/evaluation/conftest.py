"""Shared by the tests of what is measured."""

import itertools
import json
import random
from types import SimpleNamespace

import pytest
import torch

from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank


@pytest.fixture(autouse=True, name="set_clocks")
def made_clocks(monkeypatch):
    """Sets the clocks that `bench` reads: each look at them is `step` to `step + spread` seconds after the one before.

    Every test starts with one to two milliseconds, so that no figure depends on the machine.
    """

    def set_clocks(step, spread=0.0):
        draw = random.Random(0)
        looks = itertools.accumulate(step + draw.uniform(0, spread) for _ in itertools.count())
        clock = SimpleNamespace(perf_counter=looks.__next__)
        for module in ("decode.clock", "evaluation.measure.bench_reference"):
            monkeypatch.setattr(f"lora_drop.{module}.time", clock)

    set_clocks(0.001, 0.001)
    return set_clocks


@pytest.fixture
def bank(tiny, tmp_path, monkeypatch):
    """A shipped bank for residual, block; its folder stands in for assets/adapters."""
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "banks")

    def save(seed=0):
        torch.manual_seed(seed)
        bank = AdapterBank.new([3, 4], tiny.shape.hidden_size, rank=2)
        bank.b = {i: torch.randn_like(b) for i, b in bank.b.items()}
        bank.revision, bank.num_layers = tiny.revision, tiny.num_layers
        bank.save(tmp_path / "banks" / "ours")

    save()
    return save


@pytest.fixture
def data(tmp_path):
    """A file with one prompt and its target."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "What is it?", "a": "It is a cat."}) + "\n")
    return path
