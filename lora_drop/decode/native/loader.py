"""Compiles the C library once, keeps it in the cache folder, and loads it."""

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
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lora_drop.decode.native.structs import ABI, FUNCTIONS, NO_MEMORY, NO_THREADS
from lora_drop.errors import LoraDropError
from lora_drop.paths import cache_dir, drafted, temporary_folder

FOLDER = Path(__file__).parent
# -Werror is for the tests alone: a user's compiler may have warnings of its own. psabi warns of vectors as arguments
# across files; there are none.
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi")
# Without contraction only `madd` (vec.h) fuses a product and a sum, so that all functions round alike.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", *WARNINGS)
# Code paths of the kernels that LORA_DROP_NATIVE can name on an x86 processor with these instructions.
PATHS = {"avx512": "-march=x86-64-v4", "avx2": "-march=x86-64-v3", "plain": "-march=x86-64"}
COMPILE_SECONDS = 180  # a busy machine took more than 60
MOST_BYTES = 2**26  # of a library, which has 0.2 MB


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None if it is turned off or cannot be built. Compiling takes seconds, once a machine.

    Its functions raise MemoryError if there is no memory, and LoraDropError if there are no more threads.
    """
    path = _path()
    if path == "0":
        return None
    if path not in ("1", *PATHS):
        _without(f"LORA_DROP_NATIVE is {path!r}, not 0, 1, {', '.join(PATHS)}.")
        return None
    return build(find_compiler(), cache_dir() / "native", PATHS.get(path))


@cache
def build_name() -> str | None:
    """The checksum in the name of the library's file: of sources, flags, compiler and processor; None without it."""
    compiler = find_compiler()
    return None if compiler is None or library() is None else _checksum(compiler, _flags(PATHS.get(_path())))


def _path() -> str:
    return os.environ.get("LORA_DROP_NATIVE", "1")


def find_compiler() -> str | None:
    """Path of the C compiler: `CC`, or one of the usual names; None without one."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(compiler: str | None, folder: Path, processor: str | None = None) -> ctypes.CDLL | None:
    """Load the library from `folder`, or compile it; None, with one line on stderr, if that fails.

    The file's name has a checksum of sources, flags, compiler and processor, so that a cache folder may move to
    another machine, and a checksum of the file itself. If the folder has no library that can be trusted, one is
    compiled in a temporary folder and copied to the cache folder; if that fails, it is loaded from there.

    Args:
        processor: compiler flag for the processor, of `PATHS`; None is this machine's own.
    """
    if compiler is None:
        _without("there is no C compiler: install cc, gcc or clang, or name one in CC.")
        return None
    try:
        return _cached(compiler, folder, _flags(processor))
    except (OSError, subprocess.SubprocessError) as error:
        _without(f"{Path(compiler).name} cannot build them ({_reason(error)}).")
    except LoraDropError as error:
        _without(str(error))
    return None


def _cached(compiler: str, folder: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """`build`, or raise OSError, SubprocessError or LoraDropError."""
    name, refused = f"step-{_checksum(compiler, flags)}", ""
    for path in sorted(folder.glob(f"{name}-*.so")):
        try:
            return _load(path)
        except LoraDropError as error:
            refused = str(error)
            with contextlib.suppress(OSError):
                path.unlink()
    # Nobody else can write to this folder, which takes the compiler's temporary files too.
    with temporary_folder("lora-drop-build-", 2 * COMPILE_SECONDS) as work:
        draft = work / "step.so"
        compile_library(compiler, flags, draft)
        draft.chmod(0o644)  # whatever the umask says
        built = draft.rename(draft.with_name(f"{name}-{_digest(draft.read_bytes())}.so"))
        kept = _keep(built, folder / built.name)
        native = _load(folder / built.name if kept else built)
    if not kept:
        refused = f"{refused} They cannot be kept in {folder}: set LORA_DROP_CACHE to a folder of your own."
    if refused:
        print(f"note: {refused.strip()} They were built anew.", file=sys.stderr)
    return native


def _flags(processor: str | None) -> tuple[str, ...]:
    return (*FLAGS, processor or _native_flag())


def _checksum(compiler: str, flags: tuple[str, ...]) -> str:
    """Raises OSError or SubprocessError if the compiler cannot be asked for its version."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    hashed = (*(path.read_bytes() for path in sources("*.[ch]")), repr(flags).encode(), version, _processor())
    return _digest(b"|".join(hashed))


def _without(why: str) -> None:
    """Print one line on why there is no library."""
    print(f"note: no compiled decode steps: {LoraDropError(why)} Decoding goes on without, slower.", file=sys.stderr)


def _keep(built: Path, path: Path) -> bool:
    """Copy the library to the cache folder, writable by its owner alone; True if it can be loaded from there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafted(path) as (copy,):
            shutil.copyfile(built, copy)
            copy.chmod(0o644)
        os.close(_opened(path))
    except (OSError, LoraDropError):  # or a file system without owners and modes
        return False
    return True


def _reason(error: Exception) -> str:
    """The last line of a compiler's errors, or why it could not run."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit code {error.returncode}")
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it takes longer than {COMPILE_SECONDS} s"
    return str(getattr(error, "strerror", None) or error)


def sources(pattern: str) -> list[Path]:
    """C files that match a pattern."""
    return sorted(FOLDER.glob(pattern))


def compile_library(compiler: str, flags: Iterable[str], target: Path) -> None:
    """Compile the library. Raises OSError or SubprocessError."""
    command = [compiler, *flags, "-o", str(target.absolute()), *map(str, sources("*.c")), "-lm"]
    environment = os.environ | {"TMPDIR": str(target.parent.absolute())}
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS, env=environment)


def bind(path: Path) -> ctypes.CDLL:
    """Load a library. Raises LoraDropError if it does not have the functions and the ABI of `structs.py`."""
    try:
        native = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(native, name)
            function.restype, function.argtypes = result, arguments
            if result is ctypes.c_int:
                function.errcheck = _check
        abi = native.ld_abi()
    except (OSError, AttributeError) as error:
        raise LoraDropError(f"The compiled decode steps cannot be loaded ({error}).") from None
    if abi != ABI:
        raise LoraDropError(f"The compiled decode steps in {path} have ABI {abi}, not {ABI}.")
    if native.ld_path() is None:
        raise LoraDropError("The compiled decode steps are for another processor than this one.")
    return native


def _load(path: Path) -> ctypes.CDLL:
    """`bind` a file that `build` has named. Raises LoraDropError if it is damaged or others can write to it."""
    handle = _opened(path)
    if not os.path.isdir("/proc/self/fd"):
        os.close(handle)
        return bind(path)
    # Load the very file that was checked, even if it is renamed meanwhile. It stays open, because for a name that it
    # has seen before the system's loader returns the library that it has loaded.
    return bind(Path(f"/proc/self/fd/{handle}"))


def _opened(path: Path) -> int:
    """Open the library. Raises LoraDropError if it is damaged or others can write to it."""
    try:
        # No link is followed, and a pipe is not waited for.
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


def _processor() -> bytes:
    """The features by which `-march=native` tells processors apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(kept)).encode()
