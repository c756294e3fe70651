"""A model's files are brought by a process that says how far it is and can be ended at any moment."""

import os
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from lora_drop.errors import LoraDropError
from lora_drop.models import hub
from lora_drop.models.load import fetch

NAME, FILES = "owner/model", {"config.json": 1000, "model.safetensors": 2_999_000}


@pytest.fixture
def far(monkeypatch, tmp_path):
    """A model on a Hub that is not there; its download runs the given program with the blobs' folder."""
    blobs = tmp_path / "models--owner--model" / "blobs"
    blobs.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "POLL", 0.05)

    def program(text: str):
        monkeypatch.setattr(hub, "DOWNLOAD", f"import os, sys, time; folder = {str(blobs)!r}\n{text}")
        return blobs

    return program


def test_it_says_how_far_it_is(far):
    blobs = far(
        "open(folder + '/a', 'wb').write(bytes(1_000_000))\n"
        "while not os.path.exists(folder + '/seen'): time.sleep(0.01)"
    )
    for words in hub.download(NAME, FILES, lambda: False):
        assert words in {"Fetching owner/model: 0 of 3 MB.", "Fetching owner/model: 1 of 3 MB."}
        if "1 of 3" in words:
            (blobs / "seen").touch()
    assert (blobs / "seen").exists()


def test_a_stop_ends_the_download_at_once(far):
    blobs = far("open(folder + '/pid', 'w').write(str(os.getpid())); time.sleep(600)")
    with pytest.raises(LoraDropError, match="^Stopped: owner/model was not fetched"):
        list(hub.download(NAME, FILES, lambda: (blobs / "pid").exists() and (blobs / "pid").read_text() != ""))
    pid = int((blobs / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(1200):
            os.kill(pid, 0)
            time.sleep(0.05)


def test_a_download_that_breaks_is_one_line(far):
    far("print('first line', file=sys.stderr); sys.exit('no space left')")
    with pytest.raises(LoraDropError, match=r"^owner/model could not be fetched \(no space left\): try again.$"):
        list(hub.download(NAME, FILES, lambda: False))


def test_nothing_is_fetched_of_what_is_here(tmp_path):
    (tmp_path / "mine.gguf").touch()
    assert list(fetch("random:tiny-llama")) == list(fetch(str(tmp_path / "mine.gguf"))) == []
    with pytest.raises(LoraDropError, match="no model"):
        list(fetch("../nowhere"))


def test_of_a_repository_only_what_is_read_is_fetched(monkeypatch):
    names = "config.json model-1-of-2.safetensors pytorch_model.bin tokenizer.model onnx/model.safetensors run.py"
    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=7) for name in names.split()])
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *args, **kw: listed))
    monkeypatch.setattr(hub, "_hub_answers", lambda name, file: True)
    assert list(hub.hub_files(NAME)) == ["config.json", "model-1-of-2.safetensors", "tokenizer.model"]
    listed.siblings = listed.siblings[2:3]
    with pytest.raises(LoraDropError, match="has no safetensors weights"):
        hub.hub_files(NAME)
