"""What concerns the process as a whole: how OpenMP's threads wait for work, and that freed memory goes back.

The first must be set before torch is imported.

A thread that spins while it waits is a little faster on an idle machine and a disaster on a busy one: a decode step is
hundreds of small parallel regions, and with a browser or a server beside it each spinning thread burns the time slice
that the other side of the region is waiting for. `docs/openmp.md` has the measurement.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable


def configure() -> None:
    """Choose passive waiting unless the user chose otherwise. Call it before the first `import torch`.

    Later it would change nothing but what the trace says of it, so then it leaves the variable alone.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if not chosen and "torch" not in sys.modules:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def share_heap() -> None:
    """Have all threads allocate from one heap, where the C library is glibc. For a server, before it has threads.

    Otherwise each of its threads that ever built a page of 5 MB keeps a heap of that height, which `return_memory`
    does not lower.
    """
    if mallopt := _glibc("mallopt"):
        mallopt(-8, 1)  # M_ARENA_MAX


def return_memory() -> None:
    """Give what is free back to the system, where the C library is glibc. For a server, between two runs.

    glibc keeps freed blocks below the top of its heaps: the texts of runs and the pages of /replay (5 MB, in several
    copies) lie between each other, and 50 visitors made the process grow by 100 MB a minute, of which it used nothing.
    """
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
