"""Keep a server's memory low where the C library is glibc; elsewhere these functions do nothing."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def share_heap() -> None:
    """Have all threads allocate from one heap. Call it before the server has threads.

    Otherwise each thread that ever built a page of 5 MB keeps a heap of that size, which `return_memory` cannot lower.
    """
    if mallopt := _glibc("mallopt"):
        mallopt(-8, 1)  # M_ARENA_MAX


def return_memory() -> None:
    """Give free memory back to the system between two runs.

    glibc keeps freed blocks below the top of its heaps. The texts of runs and the pages of /replay (5 MB, in several
    copies) lie between each other: with 50 visitors the process grew by 100 MB a minute, all of it free.
    """
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
