"""Builds the C library once, keeps it in the cache folder, and loads it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lora_drop.decode.native.structs import ABI, FUNCTIONS, NO_MEMORY, NO_THREADS
from lora_drop.errors import LoraDropError
from lora_drop.paths import cache_dir

FOLDER = Path(__file__).parent
# A user's compiler may warn of what ours does not: -Werror is for the tests alone. psabi speaks of vectors handed from
# one file to another, which all stay within theirs.
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi")
# Without contraction a sum is what the source says, in each function: see `madd` in vec.h.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", *WARNINGS)
COMPILE_SECONDS = 60


@cache
def library() -> ctypes.CDLL | None:
    """The compiled steps; None where they cannot be had. Compiles for about a second, once a machine.

    Its functions raise MemoryError and LoraDropError where memory or threads run out.
    """
    if os.environ.get("LORA_DROP_NATIVE", "1") == "0":
        return None
    return build(find_compiler(), cache_dir() / "native")


def find_compiler() -> str | None:
    """The C compiler: `CC`, or one of the usual names; None without one."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(compiler: str | None, folder: Path) -> ctypes.CDLL | None:
    """Load the library that `compiler` makes of the sources, from `folder` if it is there already, else None.

    The name says sources, flags, compiler and processor, so that a cache folder moved to another machine is safe. It
    also says the digest of the file itself: to load a truncated library can end the process. What cannot be used is
    built once more; if the new one cannot be used either, a line on stderr says why.
    """
    if compiler is None:
        return None
    flags = (*FLAGS, _native_flag())
    hashed = (
        *(path.read_bytes() for path in sources("*.[ch]")),
        repr(flags).encode(),
        _version(compiler),
        _processor(),
    )
    name = f"step-{_digest(b'|'.join(hashed))}"
    for path in folder.glob(f"{name}-*.so"):
        try:
            return _load(path)
        except LoraDropError:
            with contextlib.suppress(OSError):
                path.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            draft = Path(work) / "step.so"
            compile_library(compiler, flags, draft)
            path = folder / f"{name}-{_digest(draft.read_bytes())}.so"
            os.replace(draft, path)  # two processes that compile at once: either result will do
    except (OSError, subprocess.SubprocessError):
        return None
    try:
        return _load(path)
    except LoraDropError as error:
        print(f"note: {error} Decoding goes on without them, more slowly.", file=sys.stderr)
        return None


def sources(pattern: str) -> list[Path]:
    """The files of the C side that fit."""
    return sorted(FOLDER.glob(pattern))


def compile_library(compiler: str, flags: Iterable[str], target: Path) -> None:
    """Make the library. Raises OSError or SubprocessError where that fails."""
    command = [compiler, *flags, "-o", str(target), *map(str, sources("*.c")), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)


def bind(path: Path) -> ctypes.CDLL:
    """Load a library. Raises LoraDropError if it is not what `structs.py` describes."""
    try:
        found = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
            if result is ctypes.c_int:
                function.errcheck = _check
        abi = found.ld_abi()
    except (OSError, AttributeError) as error:
        raise LoraDropError(f"The compiled decode steps cannot be loaded ({error}).") from None
    if abi != ABI:
        raise LoraDropError(f"The compiled decode steps in {path} have ABI {abi}, not {ABI}.")
    return found


def _load(path: Path) -> ctypes.CDLL:
    """The same for a file that `build` has named. Raises LoraDropError if it is damaged, too."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LoraDropError(f"The compiled decode steps cannot be read ({error}).") from None
    if not path.stem.endswith(_digest(content)):
        raise LoraDropError(f"The compiled decode steps in {path} are damaged.")
    return bind(path)


def _check(status: int, *_) -> None:
    if status == NO_MEMORY:
        raise MemoryError("There is no memory for a decode step.")
    if status == NO_THREADS:
        raise LoraDropError("The system gives no more threads for decoding: set OMP_NUM_THREADS to fewer.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _native_flag() -> str:
    return "-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64") else "-march=native"


def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _processor() -> bytes:
    """What distinguishes processors as far as `-march=native` does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(kept)).encode()
