"""Memory for weights in large pages, so that a processor that streams them does not wait for their addresses."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

CHUNK = 1 << 26  # bytes of a mapping, unless one piece takes more
ALIGNED = 64  # bytes


class LargePages:
    """Hands out pieces of mappings that ask for large pages; of plain memory where the system knows none of them."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """Uninitialised bytes (size,); they keep their mapping."""
        if size > len(self._left):
            self._left = _mapped(max(size, CHUNK))
        piece, self._left = self._left[:size], self._left[-(-size // ALIGNED) * ALIGNED :]
        return piece


def _mapped(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        pass
    return torch.frombuffer(mapping, dtype=torch.uint8)
