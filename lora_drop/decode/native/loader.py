"""Builds the C library once, keeps it in the cache folder, and loads it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lora_drop.decode.native.structs import ABI, FUNCTIONS, NO_MEMORY, NO_THREADS
from lora_drop.errors import LoraDropError
from lora_drop.paths import cache_dir, drafted

FOLDER = Path(__file__).parent
# A user's compiler may warn of what ours does not: -Werror is for the tests alone. psabi speaks of vectors handed from
# one file to another, which all stay within theirs.
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi")
# Without contraction a sum is what the source says, in each function: see `madd` in vec.h.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", *WARNINGS)
# Paths through the kernels that any x86 processor can be told to take, if it has the instructions.
PATHS = {"avx512": "-march=x86-64-v4", "avx2": "-march=x86-64-v3", "plain": "-march=x86-64"}
COMPILE_SECONDS = 180  # a machine that others keep busy took more than 60
MOST_BYTES = 2**26  # of a library; one has 0.2 MB


@cache
def library() -> ctypes.CDLL | None:
    """The compiled steps; None where they cannot be had. Compiles for a few seconds, once a machine.

    Its functions raise MemoryError and LoraDropError where memory or threads run out.
    """
    path = os.environ.get("LORA_DROP_NATIVE", "1")
    if path == "0":
        return None
    if path not in ("1", *PATHS):
        _without(f"LORA_DROP_NATIVE is {path!r}, not 0, 1, {', '.join(PATHS)}.")
        return None
    return build(find_compiler(), cache_dir() / "native", PATHS.get(path))


def find_compiler() -> str | None:
    """The C compiler: `CC`, or one of the usual names; None without one."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(compiler: str | None, folder: Path, processor: str | None = None) -> ctypes.CDLL | None:
    """Load the library that `compiler` makes of the sources, from `folder` if it is there already, else None.

    The name says sources, flags, compiler and processor, so that a cache folder moved to another machine is safe. It
    also says the checksum of the file itself: both are there with one rename. Where the folder has none that can be
    trusted, one is built in a folder of this program's own and kept for the next start, if it can be. Whatever is not
    as it should be is one line on stderr.

    Args:
        processor: the flag that names one, of `PATHS`; this machine's own unless given.
    """
    if compiler is None:
        _without("there is no C compiler: install cc, gcc or clang, or name one in CC.")
        return None
    flags = (*FLAGS, processor or _native_flag())
    hashed = (
        *(path.read_bytes() for path in sources("*.[ch]")),
        repr(flags).encode(),
        _version(compiler),
        _processor(),
    )
    name, refused = f"step-{_digest(b'|'.join(hashed))}", ""
    for path in sorted(folder.glob(f"{name}-*.so")):
        try:
            return _load(path)
        except LoraDropError as error:
            refused = str(error)
            with contextlib.suppress(OSError):
                path.unlink()
    try:
        # A folder that nobody else can write to; so the compiler's own drafts are in it.
        with tempfile.TemporaryDirectory(prefix="lora-drop-", ignore_cleanup_errors=True) as work:
            draft = Path(work) / "step.so"
            compile_library(compiler, flags, draft)
            draft.chmod(0o644)  # whatever the umask says
            built = draft.rename(draft.with_name(f"{name}-{_digest(draft.read_bytes())}.so"))
            kept = _keep(built, folder / built.name)
            found = _load(folder / built.name if kept else built)
    except (OSError, subprocess.SubprocessError) as error:
        _without(f"{Path(compiler).name} cannot build them ({_reason(error)}).")
        return None
    except LoraDropError as error:
        _without(str(error))
        return None
    if not kept:
        refused = f"{refused} They cannot be kept in {folder}: set LORA_DROP_CACHE to a folder of your own."
    if refused:
        print(f"note: {refused.strip()} They were built anew.", file=sys.stderr)
    return found


def _without(why: str) -> None:
    """Say in one line why there is no library."""
    print(f"note: no compiled decode steps: {LoraDropError(why)} Decoding goes on without, slower.", file=sys.stderr)


def _keep(built: Path, path: Path) -> bool:
    """Put the library into the cache folder, written by its owner alone; whether it can be loaded from there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafted(path) as (copy,):
            shutil.copyfile(built, copy)
            copy.chmod(0o644)
    except OSError:
        return False
    try:
        os.close(_opened(path))
    except LoraDropError:  # a file system that has owners of its own
        return False
    return True


def _reason(error: Exception) -> str:
    """The last that a compiler said, or why it could not be asked."""
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.decode(errors="replace").split("\n")
        return next((line for line in reversed(said) if line.strip()), f"exit code {error.returncode}")
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it takes longer than {COMPILE_SECONDS} s"
    return str(getattr(error, "strerror", None) or error)


def sources(pattern: str) -> list[Path]:
    """The files of the C side that fit."""
    return sorted(FOLDER.glob(pattern))


def compile_library(compiler: str, flags: Iterable[str], target: Path) -> None:
    """Make the library. Raises OSError or SubprocessError where that fails."""
    command = [compiler, *flags, "-o", str(target.absolute()), *map(str, sources("*.c")), "-lm"]
    environment = os.environ | {"TMPDIR": str(target.parent.absolute())}
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS, env=environment)


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
    if found.ld_path() is None:
        raise LoraDropError("The compiled decode steps are for another processor than this one.")
    return found


def _load(path: Path) -> ctypes.CDLL:
    """The same for a file that `build` has named. Raises LoraDropError if it is damaged, or somebody else's."""
    handle = _opened(path)
    if not os.path.isdir("/proc/self/fd"):
        os.close(handle)
        return bind(path)
    # What was checked is what is loaded, whoever renames what meanwhile. The file stays open: a loader that sees a
    # name for the second time takes the library that it had at first.
    return bind(Path(f"/proc/self/fd/{handle}"))


def _opened(path: Path) -> int:
    """A descriptor of the library. Raises LoraDropError where it is damaged or somebody else can have written it."""
    try:
        # Neither through a link, nor waiting for who writes into a pipe.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise LoraDropError(f"The compiled decode steps in {path} cannot be read ({error.strerror}).") from None
    try:
        about = os.fstat(handle)
        if os.name == "posix" and (about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022):
            raise LoraDropError(f"The compiled decode steps in {path} can be written by somebody else.")
        whole = stat.S_ISREG(about.st_mode) and about.st_size < MOST_BYTES
        if not whole or not path.stem.endswith(_digest(os.pread(handle, about.st_size, 0))):
            raise LoraDropError(f"The compiled decode steps in {path} are damaged.")
    except BaseException:
        os.close(handle)
        raise
    return handle


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
