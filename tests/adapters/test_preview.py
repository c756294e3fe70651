"""The codes of a screened head that its bank leaves out: made once from the model's head, which may be in blocks."""

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from lora_drop.adapters import preview
from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.head import ScreenedHead
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import load_model
from tests.support.decoding import logits_of, needs_compiler
from tests.support.gguf_files import write
from tests.support.parts import full_bank


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    for module in ("adapters.preview", "models.gguf"):
        monkeypatch.setattr(f"lora_drop.{module}.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(preview, "_LATEST", {})
    return tmp_path / "cache" / "previews"


def test_codes_are_cached_and_made_again_where_they_are_damaged(tiny, tmp_path, cache, monkeypatch):
    bank = full_bank(tiny, "residual")
    bank.save(tmp_path / "bank")
    head = AdapterBank.load(tmp_path / "bank").head
    assert not len(head.codes)

    def are_right():
        preview._LATEST.clear()
        coded = preview.with_codes(head, tiny)
        return torch.equal(coded.codes, bank.head.codes) and torch.equal(coded.scale, bank.head.scale)

    assert are_right()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ScreenedHead, "coded", None)
        assert are_right(), "read, not made"
    for damaged in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        assert are_right() and file.read_bytes() == whole
    file.unlink()
    cache.rmdir()
    cache.write_bytes(b"no folder")
    assert are_right(), "where the cache cannot be written"


@needs_compiler
@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K, Kind.Q8_0])
def test_a_head_in_blocks_is_screened_as_its_numbers_are(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_drop.models.place._cpu_has_bfloat16", lambda: False)
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_K}, head=kind)
    loaded, dense = (load_model(str(path), "cpu", with_numbers=is_dense) for is_dense in (False, True))
    bank = full_bank(dense, "residual", layers=[1, 2], rank=48)
    bank.kv, bank.refresh = "write", "repair"
    bank.save(tmp_path / "bank")
    rules = {"refresh": "repair", "kv": "write", "head": "screened"}
    config = LoraDropConfig(period=3, layers=(1, 2), adapters=str(tmp_path / "bank"), **rules)
    schedule = config.schedule_for(loaded.num_layers)
    ours, notes = find_bank(loaded, config, schedule)
    assert torch.equal(ours.head.codes, bank.head.codes) and not notes
    logits = logits_of(loaded.new_decoder(), schedule, ours)[0]
    right = logits_of(ReferenceDecoder(dense.model), schedule, bank)[0]
    # Rounding may swap the last of the screened head's best tokens with the first of the others.
    assert ((logits - right).abs() > 2e-3 * right.abs().max()).sum(-1).max() <= 2
