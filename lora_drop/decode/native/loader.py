"""Loads the C library: the wheel's, which holds every path of its platform, or one that is compiled here once.

A wheel has its library beside this file (`make wheels`). A checkout has none: there the library is compiled for this
machine's processor and stored in the cache folder; so it is where the wheel's cannot be loaded.
"""

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
from typing import Any, Literal

from lora_drop import system
from lora_drop.decode.native.structs import ABI, FUNCTIONS, NO_MEMORY, NO_THREADS
from lora_drop.errors import LoraDropError
from lora_drop.paths import BUILT_KERNELS, cache_dir, drafted, temporary_folder

FOLDER = Path(__file__).parent
# -Werror is for the tests alone: a user's compiler may have other warnings. psabi warns of vectors as arguments
# across files; there are none.
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi")
# Without contraction only `madd` (vec.h) fuses a product and a sum, so that all functions round alike.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", *WARNINGS)
# The kernels' paths and the processor that each is compiled for, the best last; LORA_DROP_NATIVE can name one.
X86_PATHS = {
    "plain": "x86-64",
    "avx2": "x86-64-v3",
    "avx512": "x86-64-v4",
    "avx512-vnni": "x86-64-v4+avx512vnni",
    "avx512-vnni-bf16": "x86-64-v4+avx512vnni+avx512bf16",
}
ARM_PATHS = {"neon": "armv8-a", "neon-dot": "armv8-a+dotprod"}
IS_ARM = platform.machine().lower() in ("aarch64", "arm64")
PATHS = ARM_PATHS if IS_ARM else X86_PATHS
BEST = "best"
COMPILE_SECONDS = 180  # a busy machine took more than 60
MOST_BYTES = 2**26  # of a library, which has 0.2 MB


class Library(ctypes.CDLL):
    """The C library's functions.

    Attributes:
        about: which build and path they are: `wheel, avx2` or `built here, avx512-vnni`.
        checksum: of the build and the path.
    """

    about = checksum = ""


@cache
def library() -> Library | None:
    """The library; None if it is turned off or there is none. Compiling takes seconds, once a machine.

    Its functions raise MemoryError if there is no memory, and LoraDropError if there are no more threads.
    """
    path, refused = _path_wanted(), ""
    if path == "0":
        return None
    if path not in ("1", *PATHS):
        _without(f"LORA_DROP_NATIVE is {path!r}, not 0, 1, {', '.join(PATHS)}.")
        return None
    name = None if path == "1" else path
    if shipped := shipped_library():
        try:
            return bind(shipped, name or BEST)
        except LoraDropError as error:
            refused = str(error)
    return build(find_compiler(), cache_dir() / "native", name and PATHS[name], refused)


def _path_wanted() -> str:
    return os.environ.get("LORA_DROP_NATIVE", "1")


def why_missing() -> Literal["off", "compiler", "build"]:
    """Why there is no library: turned off, no compiler, or a build that failed. `library` has printed the details."""
    if _path_wanted() == "0":
        return "off"
    return "build" if find_compiler() else "compiler"


def library_name(platform_name: str = sys.platform, machine: str = platform.machine()) -> str:
    """File name of the wheel's library for a system and a processor, as Python names them."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(platform_name, "so")
    return f"kernels-{platform_name}-{machine.lower()}.{suffix}"


def shipped_library() -> Path | None:
    """The wheel's library for this machine; None in a checkout, and where the wheel is for another platform."""
    path = FOLDER / library_name()
    return path if path.is_file() else None


def built_for_wheels() -> Path:
    """The folder where `make wheels` leaves the libraries of all platforms (it may not exist), for these sources."""
    return BUILT_KERNELS / _digest(_all_sources())


def find_compiler() -> str | None:
    """Path of the C compiler: `CC`, or one of the usual names; None without one."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(compiler: str | None, folder: Path, processor: str | None = None, refused: str = "") -> Library | None:
    """Load the library from `folder`, or compile it; None, with one line on stderr, if that fails.

    The file's name has a checksum of sources, flags, compiler and processor, so that a cache folder may move to
    another machine, and a checksum of the file itself. If the folder has no library that can be trusted, one is
    compiled in a temporary folder and copied to the cache folder; if that fails, it is loaded from there.

    Args:
        processor: of `PATHS`; None is this machine's.
        refused: why the wheel's library is not used.
    """
    if compiler is None:
        _without(
            f"{refused} There is no C compiler: install cc, gcc or clang, name one in CC, or install this "
            f"platform's wheel."
        )
        return None
    try:
        return _cached(compiler, folder, (*FLAGS, *_processor_flags(processor)), refused)
    except (OSError, subprocess.SubprocessError) as error:
        _without(f"{refused} {Path(compiler).name} cannot build them ({_reason(error)}).")
    except LoraDropError as error:
        _without(f"{refused} {error}")
    return None


def _cached(compiler: str, folder: Path, flags: tuple[str, ...], refused: str) -> Library:
    """`build`, or raise OSError, SubprocessError or LoraDropError."""
    name = f"step-{_checksum(compiler, flags)}"
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
        is_stored = _store(built, folder / built.name)
        native = _load(folder / built.name if is_stored else built)
    if not is_stored:
        refused = f"{refused} They cannot be kept in {folder}: set LORA_DROP_CACHE to a folder of your own."
    if refused:
        print(f"note: {refused.strip()} They were built anew.", file=sys.stderr)
    return native


def _processor_flags(processor: str | None) -> list[str]:
    """What gcc and clang call a processor of `PATHS`; None is this machine's."""
    if IS_ARM:
        return [f"-march={processor}" if processor else "-mcpu=native"]
    base, *features = (processor or "native").split("+")
    return [f"-march={base}", *(f"-m{feature}" for feature in features)]


def _checksum(compiler: str, flags: tuple[str, ...]) -> str:
    """Raises OSError or SubprocessError if the compiler cannot be asked for its version."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    hashed = (_all_sources(), repr(flags).encode(), version, _processor())
    return _digest(b"|".join(hashed))


def _all_sources() -> bytes:
    return b"|".join(path.read_bytes() for path in sources("*.[ch]"))


def _without(why: str) -> None:
    """Print one line on why there is no library."""
    print(f"note: no compiled decode steps: {LoraDropError(why)} Decoding goes on without, slower.", file=sys.stderr)


def _store(built: Path, path: Path) -> bool:
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


def bind(path: Path, kernels: str = "") -> Library:
    """Load a library.

    Args:
        kernels: of a wheel's library, the path to take: one of `PATHS`, or `BEST` of what this processor has.

    Raises:
        LoraDropError: it does not have the functions and the ABI of `structs.py`, or this processor not its path.
    """
    try:
        native = Library(str(path))
        native.ld_paths.restype = ctypes.c_char_p
        able = native.ld_paths().decode().split()
        kernels = able[-1] if kernels == BEST else kernels
        if kernels and kernels not in able:
            raise LoraDropError(f"This processor has no {kernels}.")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(native, path_name(name, kernels))
            function.restype, function.argtypes = result, arguments
            if result is ctypes.c_int:
                function.errcheck = _check
            setattr(native, name, function)
        abi, kernel_path = native.ld_abi(), native.ld_path().decode()
    except (OSError, AttributeError) as error:
        raise LoraDropError(f"The compiled decode steps cannot be loaded ({error}).") from None
    if abi != ABI:
        raise LoraDropError(f"The compiled decode steps in {path} have ABI {abi}, not {ABI}.")
    if kernel_path not in able:
        raise LoraDropError("The compiled decode steps are for another processor than this one.")
    native.about = f"{'wheel' if kernels else 'built here'}, {kernel_path}"
    native.checksum = f"{_digest(path.read_bytes())}-{kernel_path}"
    return native


def path_name(function: str, kernels: str) -> str:
    """A function's name in a library of several paths, of one of them; `ld_paths` is of the library."""
    return f"{function}_{kernels.replace('-', '_')}" if kernels and function != "ld_paths" else function


def _load(path: Path) -> Library:
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
        handle = os.open(path, system.READ_STRANGERS)
    except OSError as error:
        raise LoraDropError(f"The compiled decode steps in {path} cannot be read ({error.strerror}).") from None
    try:
        about = os.fstat(handle)
        if system.others_can_write(about):
            raise LoraDropError(f"The compiled decode steps in {path} can be written by somebody else.")
        whole = stat.S_ISREG(about.st_mode) and about.st_size < MOST_BYTES
        if not whole or not path.stem.endswith(_digest(_content(handle))):
            raise LoraDropError(f"The compiled decode steps in {path} are damaged.")
    except BaseException:
        os.close(handle)
        raise
    return handle


def _content(handle: int) -> bytes:
    with open(handle, "rb", closefd=False) as file:
        return file.read()


def _check(status: int, *_: Any) -> None:
    if status == NO_MEMORY:
        raise MemoryError("There is no memory for a decode step.")
    if status == NO_THREADS:
        raise LoraDropError("The system gives no more threads for decoding: set OMP_NUM_THREADS to fewer.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> bytes:
    """The features by which `-march=native` tells processors apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    features = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(features)).encode()
