"""KV storage: what it holds, what it takes."""

import ctypes
import mmap
import re
from pathlib import Path

import pytest
import torch

from lora_drop.decode.cache import BLOCK, LARGE_PAGE, KVCache, ask_large_pages


def test_growth_keeps_what_was_written():
    cache = KVCache(2)
    keys = torch.randn(1, 3, 5 * BLOCK + 7, 8)
    for start in range(0, keys.shape[2], 13):
        part = keys[:, :, start : start + 13]
        seen, _ = cache.update(part, -part, 1)
        assert torch.equal(seen, keys[:, :, : start + 13])
    assert torch.equal(cache.stores[1][1, :, :, : cache.lengths[1]], -keys)
    assert cache.lengths == [0, keys.shape[2]]


def test_bytes_are_counted_from_the_tensors_and_at_most_a_block_is_spare():
    cache = KVCache(3)
    block = 2 * 3 * 8 * BLOCK * 4
    for tokens in (1, BLOCK - 1, 1, 1, 200):
        cache.update(torch.randn(1, 3, tokens, 8), torch.randn(1, 3, tokens, 8), 2)
        filled = 2 * 3 * 8 * 4 * cache.lengths[2]
        assert cache.nbytes == filled <= cache.allocated_bytes < filled + block


def test_a_clone_has_storage_of_its_own():
    cache = KVCache(1)
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    copy = cache.clone()
    copy.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), 0)
    cache.stores[0].fill_(7)
    assert copy.lengths == [3] and cache.lengths == [2]
    assert copy.stores[0][0, 0, 0, :3, 0].tolist() == [1, 1, 0]


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here")
def test_large_pages_are_asked_for_within_a_tensor():
    with mmap.mmap(-1, 4 * LARGE_PAGE) as memory:
        start = ctypes.addressof(held := ctypes.c_char.from_buffer(memory))
        ask_large_pages(start + 1, 3 * LARGE_PAGE)
        first = -(-(start + 1) // LARGE_PAGE) * LARGE_PAGE
        asked = [area for area in re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()) if " hg" in area]
        bounds = [[int(end, 16) for end in area.split()[0].split("-")] for area in asked]
        assert [first, first + 2 * LARGE_PAGE] in [b for b in bounds if start <= b[0] < start + 4 * LARGE_PAGE]
        ask_large_pages(start, LARGE_PAGE - 1)  # too little for one: nothing, and no error
        del held
