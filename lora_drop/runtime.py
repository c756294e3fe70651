"""What concerns the process as a whole: where it runs, OpenMP's threads, freed memory, and its packages' versions.

How OpenMP's threads wait for work must be set before torch is imported.

A thread that spins while it waits is a little faster on an idle machine and a disaster on a busy one: a decode step is
hundreds of small parallel regions, and with a browser or a server beside it each spinning thread burns the time slice
that the other side of the region is waiting for. `docs/openmp.md` has the measurement.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from lora_drop.errors import LoraDropError

VERSION = "0.1.0"  # as in pyproject.toml
CGROUPS = Path("/sys/fs/cgroup")
LARGE_PAGE = 1 << 21  # bytes
N = TypeVar("N", int, float)
T = TypeVar("T")


def configure() -> None:
    """Choose passive waiting, and no more threads than a container's share of the cores; a user's choice stays.

    Call it before the first `import torch`: later it would change nothing but what the trace says of it, so then it
    leaves the variables alone.
    """
    if "torch" not in sys.modules:
        if set(waiting().values()) == {"default"}:
            os.environ["OMP_WAIT_POLICY"] = "passive"
        share = core_share()
        if share is not None and share < (os.cpu_count() or 1):
            # torch counts the host's cores; threads beyond the share are stopped in the middle of a step.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(share))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Gradio reads these two when it is imported. It makes a table of its last 10,000 calls after each of them, in a
    # thread beside the decoding: 15 ms.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "200")


def waiting() -> dict[str, str]:
    """How OpenMP's threads wait for work here, as the environment says it: for headers and reports."""
    return {
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
    }


@cache
def _owner(device: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"owner-of-{device}")


def owned(device: str, work: Iterator[T]) -> Generator[T, None, None]:
    """An iterator whose every step is made by the one thread that owns a device, whoever asks for it.

    A server asks from one of many threads that come and go. On a GPU each would get libraries' workspaces of its own,
    and one could call CUDA in the middle of another's capture. Two iterators take turns, a step each.
    """
    done = object()
    owner = _owner(device)
    try:
        while (found := owner.submit(next, work, done).result()) is not done:
            yield cast(T, found)
    finally:
        if isinstance(work, Generator):
            owner.submit(work.close).result()


def in_space() -> bool:
    """True in a HuggingFace Space, whose owner pays for what its visitors load."""
    return "SPACE_ID" in os.environ


def on_zero_gpu() -> bool:
    """True in a Space on ZeroGPU, read as the package `spaces` reads it (`spaces.config`, 0.51)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def positive_number(variable: str, default: N) -> N:
    """A positive number of the default's type, from the environment.

    Raises:
        LoraDropError: it is none, in one line: that is the operator's mistake.
    """
    text = os.environ.get(variable, "").strip()
    try:
        value = type(default)(text) if text else default
        if not math.isfinite(value) or (text and value <= 0):
            raise ValueError
    except ValueError:
        raise LoraDropError(f"the variable {variable} must be a number above 0, not {text[:40]!r}.") from None
    return value


def core_share(cgroups: Path = CGROUPS) -> float | None:
    """The cores that a container may use by its quota (cgroups 2 or 1); None without one."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((cgroups / name).read_text() for name in names).split()
            if float(quota) > 0:
                return float(quota) / float(period)
    return None


@cache
def check_versions(extra: str | None = None) -> None:
    """Refuse installed packages that are older than this program needs, and `-OO`. Imports none of them: 50 ms, once.

    For where a program starts (a command, the page, a library's first use), not for `import lora_drop`: an old version
    does not always fail by itself. transformers 5.20 to 5.23 read the bundled model without an error, and wrong.

    Args:
        extra: the wheel's extra whose packages are looked at too. In a checkout, all are.

    Raises:
        LoraDropError: in one line, what is too old and how to replace it.
    """
    from importlib.metadata import PackageNotFoundError, version

    if sys.flags.optimize > 1:
        raise LoraDropError("transformers reads docstrings, which -OO (PYTHONOPTIMIZE=2) removes: use -O, or neither")
    old, needed = [], []
    for name, floor, requirement in _floors(extra):
        with contextlib.suppress(PackageNotFoundError):  # its import will say so, where it is needed
            if _numbers(found := version(name)) < _numbers(floor):
                old.append(f"{name} {found} is installed, and {floor} or newer is needed")
                needed.append(f"'{requirement}'")
    if old:
        raise LoraDropError(f"{'; '.join(old)}: pip install {' '.join(needed)}")


def _floors(extra: str | None) -> Iterator[tuple[str, str, str]]:
    """Each package with a lowest version, by the wheel's metadata or else by requirements.txt: name, version, line."""
    from importlib.metadata import PackageNotFoundError, requires

    from lora_drop.paths import CHECKOUT

    lines: list[str] = []
    with contextlib.suppress(OSError, PackageNotFoundError):  # a package that was copied somewhere alone
        if CHECKOUT:
            lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        else:
            lines = requires("lora-drop") or []
    for line in lines:
        requirement, _, marker = line.partition(";")
        of = re.search(r"""extra == ['"](.+?)['"]""", marker)
        if (of is None or of[1] == extra) and (match := re.match(r"([\w.-]+).*>=([\d.]+)", requirement)):
            yield match[1], match[2], requirement.strip()


def _numbers(version: str) -> list[int]:
    """The release of a version, in four numbers: [2, 13, 0, 0] for 2.13.0+cpu."""
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    return (numbers + 4 * [0])[:4]


def share_heap() -> None:
    """Have all threads allocate from one heap, where the C library is glibc. For a server, before it has threads.

    Otherwise each of its threads that ever built a page of 5 MB keeps a heap of that height, which `return_memory`
    does not lower.
    """
    if mallopt := _glibc("mallopt"):
        mallopt(-8, 1)  # M_ARENA_MAX


def ask_large_pages(address: int, size: int) -> None:
    """Ask for large pages where `size` bytes from an address on hold whole ones, before they are written; for Linux.

    What is read in full again and again (the K/V of a long text) then waits less for its addresses.
    """
    first, last = -(-address // LARGE_PAGE) * LARGE_PAGE, (address + size) // LARGE_PAGE * LARGE_PAGE
    if first < last and (advise := _glibc("madvise")):
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), 14)  # MADV_HUGEPAGE; a kernel without says no


def return_memory() -> None:
    """Give what is free back to the system, where the C library is glibc. For a server, between two runs.

    glibc keeps freed blocks below the top of its heaps: the texts of runs and the pages of /replay (5 MB, in several
    copies) lie between each other, and 50 visitors made the process grow by 100 MB a minute, of which it used nothing.
    """
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
