"""Attention of decode steps on a GPU, split over the keys, in Triton.

At batch 1 one block of work for each K/V head would leave most of a GPU idle. So the keys are cut into `SPLITS` equal
parts. A block reads each part for all rows and all query heads of its K/V head at once, and a second kernel joins the
parts. Their length follows from the last row's place, which the kernel reads from the device's memory: a graph
captured once serves every length, and nothing beyond the last row is read.

Importing this module needs Triton. `TRITON_INTERPRET=1` runs it on a CPU.

Shapes: R rows of a pass, nh heads, nkv K/V heads, G = nh / nkv, hs head size, M = R G queries of a K/V head.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLITS = 32  # 256 blocks with 8 K/V heads, two for each multiprocessor of an H100
BLOCK_M = 16  # queries of a block, the fewest that tensor cores take
BLOCK_N = 64  # keys that a block reads at a time


@triton.jit
def _part(
    heads, store, places, mixed, top, total, rows, capacity, stride, scale,
    GROUP: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One part of the keys for one K/V head: the sum of values weighted by exp(score - top), top and total weight."""
    head, part = tl.program_id(0), tl.program_id(1)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    d = tl.arange(0, WIDE)
    row, inside, wide = m // GROUP, m < M, d < SIZE
    length = (tl.load(places + rows - 1) + 1).to(tl.int32)
    part_length = tl.cdiv(tl.cdiv(length, PARTS), BN) * BN
    start = part * part_length
    end = tl.minimum(start + part_length, length)
    last = tl.load(places + row, mask=inside, other=0).to(tl.int32)
    at = row * stride + (head * GROUP + m % GROUP) * SIZE
    queries = tl.load(heads + at[:, None] + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0)
    best = tl.full((BM,), float("-inf"), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    summed = tl.zeros((BM, WIDE), tl.float32)
    for first in range(start, end, BN):
        n = first + tl.arange(0, BN)
        near = (n < end)[:, None] & wide[None, :]
        key = store + (head * capacity + n)[:, None] * SIZE + d[None, :]
        keys = tl.load(key, mask=near, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((n[None, :] <= last[:, None]) & (n < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        zero = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing here
        chances = tl.exp(scores - zero[:, None])
        shrink = tl.exp(best - zero)
        values = tl.load(key + KV * capacity * SIZE, mask=near, other=0.0)
        weight = weight * shrink + tl.sum(chances, 1)
        summed = summed * shrink[:, None] + tl.dot(chances.to(values.dtype), values, input_precision="ieee")
        best = higher
    to = (head * PARTS + part) * M + m
    tl.store(top + to, best, mask=inside)
    tl.store(total + to, weight, mask=inside)
    tl.store(mixed + to[:, None] * SIZE + d[None, :], summed, mask=inside[:, None] & wide[None, :])


@triton.jit
def _join(
    mixed, top, total, out,
    GROUP: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Join the parts of one query."""
    head, m = tl.program_id(0), tl.program_id(1)
    p, d = tl.arange(0, PARTS), tl.arange(0, WIDE)
    at = (head * PARTS + p) * M + m
    tops = tl.load(top + at)
    share = tl.exp(tops - tl.max(tops, 0))
    sums = tl.load(mixed + at[:, None] * SIZE + d[None, :], mask=(d < SIZE)[None, :], other=0.0)
    joined = tl.sum(sums * share[:, None], 0) / tl.sum(tl.load(total + at) * share, 0)
    to = (m // GROUP) * HEADS + head * GROUP + m % GROUP
    tl.store(out + to * SIZE + d, joined.to(out.dtype.element_ty), mask=d < SIZE)


def attend(heads: Tensor, store: Tensor, places: Tensor, count: int) -> Tensor:
    """Outputs of the heads, (R, nh hs), for R rows whose keys and values are in the store already.

    Args:
        heads: (R, nh + 2 nkv, hs), queries first, contiguous within a row.
        store: a layer's K/V, (2, 1, nkv, capacity, hs).
        places: (R,), each row's place in the store, ascending; a row sees all up to its place.
        count: nh.
    """
    rows, (kv, capacity, size) = len(heads), store.shape[2:]
    group, wide = count // kv, triton.next_power_of_2(size)
    m = rows * group
    mixed = torch.empty(kv, SPLITS, m, size, dtype=torch.float32, device=heads.device)
    top, total = torch.empty(2, kv, SPLITS, m, dtype=torch.float32, device=heads.device)
    out = torch.empty(rows, count * size, dtype=heads.dtype, device=heads.device)
    scale = 1 / math.sqrt(size)
    sizes = {"GROUP": group, "SIZE": size, "WIDE": wide, "M": m, "PARTS": SPLITS}
    _part[(kv, SPLITS, triton.cdiv(m, BLOCK_M))](
        heads, store, places, mixed, top, total, rows, capacity, heads.stride(0), scale,
        KV=kv, BM=BLOCK_M, BN=BLOCK_N, **sizes,
    )  # fmt: skip
    _join[(kv, m)](mixed, top, total, out, HEADS=count, **sizes)
    return out
