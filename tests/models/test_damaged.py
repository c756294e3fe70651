"""Damaged files of a model or a bank: one line that says the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lora_drop.adapters.bank import CONFIG_NAME, AdapterBank
from lora_drop.errors import LoraDropError
from lora_drop.models import hub, load
from lora_drop.models.gguf import BLOCKS, gguf_rows
from lora_drop.models.load import BUNDLED_ID, load_model

REPAIR = "python -m lora_drop fetch --verify"


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"a": 5}', '{"a": [0, 9, 9]}', '{"a": ["0", 1, 1]}'],
    ids=["cut", *"list row size text".split()],
)
def test_a_damaged_index_of_blocks(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(bytes(16))
    (tmp_path / BLOCKS).write_text(content)
    with pytest.raises(ValueError):
        gguf_rows(tmp_path / "x.gguf", 9, 3)


@pytest.mark.parametrize("damage", [BLOCKS, "model.safetensors", "tokenizer.json", "config.json"])
def test_the_bundled_models_files(bundled, tmp_path, monkeypatch, damage):
    """Of the right size, so that only a look inside shows it."""
    folder = tmp_path / "copy"
    shutil.copytree(load.bundled.ensure(), folder, symlinks=True)
    (folder / damage).write_bytes(b"{" * (folder / damage).stat().st_size)
    monkeypatch.setattr(load.bundled, "ensure", lambda: folder)
    with pytest.raises(LoraDropError, match=REPAIR) as caught:
        load_model("bundled", device="cpu")
    assert BUNDLED_ID in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "local", "says"),
    [(BUNDLED_ID, True, REPAIR), ("mine", True, "copy the folder again"), ("a/b", False, "in the Hub's cache")],
)
def test_what_to_do_with_a_model(name, local, says):
    with pytest.raises(LoraDropError, match=says), hub._one_line(name, "its weights cannot be loaded", local):
        raise ValueError("broken")


def test_what_to_do_with_a_bank(tmp_path):
    bank = AdapterBank.new([1], 8, rank=2)
    bank.save(tmp_path)
    bank.a[1][0, 0] = torch.nan
    bank.save(tmp_path)
    with pytest.raises(LoraDropError, match="layer 1 holds NaN or infinity.*files back.*adapters none"):
        AdapterBank.load(tmp_path)
    config = Path(tmp_path / CONFIG_NAME)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 0}))
    with pytest.raises(LoraDropError, match="rank 0.*adapters none"):
        AdapterBank.load(tmp_path)
