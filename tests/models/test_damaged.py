"""Damaged files of a model or a bank: one line that says the way out."""

import json
import random
import shutil

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.hub import CONFIG_NAME, SUMS_NAME, WEIGHTS_NAME
from lora_drop.errors import LoraDropError
from lora_drop.models import bundled, hub, load
from lora_drop.models.gguf import BLOCKS, gguf_rows
from lora_drop.models.load import BUNDLED_ID, load_model
from tests.support.fuzzing import mutated_bytes, one_line

REPAIR = "python -m lora_drop fetch --verify"


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"a": 5}', '{"a": [0, 9, 9]}', '{"a": ["x", 1, 1]}'],
    ids=["cut", *"list row size text".split()],
)
def test_a_damaged_index_of_blocks(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(bytes(16))
    (tmp_path / BLOCKS).write_text(content)
    with pytest.raises(ValueError):
        gguf_rows(tmp_path / "x.gguf", 9, 3)


@pytest.mark.parametrize("damage", [BLOCKS, "model.safetensors", "tokenizer.json", "config.json"])
def test_the_bundled_models_files(tmp_path, monkeypatch, damage):
    """Of the right size, so that only a look inside shows it."""
    folder = tmp_path / "copy"
    shutil.copytree(bundled.ensure(), folder, symlinks=True)
    (folder / damage).write_bytes(b"{" * (folder / damage).stat().st_size)
    monkeypatch.setattr(load.bundled, "ensure", lambda verify=False: folder)
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


@pytest.mark.full
def test_a_thousand_mutations_of_each_file_of_the_bundled_model(shop):
    """None is used: the folder is not ready. A changed manifest only if it holds each file to its checksum."""
    folder, rng = bundled.ensure(), random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _ in range(1000):
            mutated = mutated_bytes(content, rng, [content])
            path.write_bytes(mutated)
            if bundled.is_ready(folder, verify=True):
                assert mutated == content or (path.name == bundled.MANIFEST and held(mutated) == held(content))
        path.write_bytes(content)
    shop.assert_clean()


def held(manifest: bytes) -> dict[str, tuple[int, str]]:
    """Size and checksum that a manifest holds each file to."""
    return {name: (one["size"], one["sha256"]) for name, one in json.loads(manifest.decode())["files"].items()}


@pytest.mark.full
@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME, SUMS_NAME])
def test_a_thousand_mutations_of_each_file_of_a_bank(tmp_path, name):
    """Each is one line, or gives the very numbers that were saved."""
    bank, rng = AdapterBank.new([1, 2], 8, rank=2), random.Random(0)
    bank.save(tmp_path)
    content, loaded = (tmp_path / name).read_bytes(), 0
    for _ in range(1000):
        mutated = mutated_bytes(content, rng, [content])
        (tmp_path / name).write_bytes(mutated)
        try:
            back = AdapterBank.load(tmp_path)
        except LoraDropError as error:
            one_line(error)
            continue
        loaded += 1
        assert mutated == content or name == SUMS_NAME
        assert back.alpha == bank.alpha and all(torch.equal(back.a[i], bank.a[i]) for i in (1, 2))
    assert loaded < 200


def test_an_older_bank_has_no_checksums_and_loads(tmp_path):
    AdapterBank.new([1], 8, rank=2).save(tmp_path)
    (tmp_path / SUMS_NAME).unlink()
    assert AdapterBank.load(tmp_path).layers == [1]
