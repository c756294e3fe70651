"""Shared by the tests of what is measured."""

import json

import pytest
import torch

from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank


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
