"""Several rows at once in C: each is, to the bit, what it is alone, for each kind, number of rows and of threads; and
blocks give what their numbers give."""

import ctypes
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_drop.decode.native import library, loader, structs
from lora_drop.decode.native.structs import BF16, F32, Q4_1, Q8_0, Matrix

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler here")
COUNTS = [*range(1, 10), 15, 16, 17, 64]
BYTES = {Q4_1: 20, Q8_0: 34}  # of a block of 32


@pytest.fixture(scope="module", params=["one thread", "two threads", "x86-64-v3", "x86-64"])
def fresh(request, tmp_path_factory):
    """The library with a pool of its own; and as it is for lesser processors than this one may be."""
    path = tmp_path_factory.mktemp("fresh") / "step.so"
    if "thread" in request.param:
        shutil.copy(library()._name, path)
    elif platform.machine() != "x86_64":
        pytest.skip("another family of processors")
    elif request.param == "x86-64-v3" and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    else:
        loader.compile_library(loader.find_compiler(), (*loader.FLAGS, f"-march={request.param}"), path)
    found = loader.bind(path)
    found.ld_threads(1 if request.param == "one thread" else 2)
    return found


def matrix(kind, n, k):
    """A random one, and what keeps its memory."""
    torch.manual_seed(n + k)
    bias = torch.randn(n)
    if kind in (F32, BF16):
        data = torch.randn(n, k, dtype=torch.float32 if kind == F32 else torch.bfloat16)
        return Matrix(data.data_ptr(), bias.data_ptr(), n, k, kind), (data, bias)
    rows = np.random.default_rng(k).integers(0, 256, (n, k // 32, BYTES[kind]), dtype=np.uint8)
    scales = 2 if kind == Q4_1 else 1
    rows[..., : 2 * scales] = (
        np.random.default_rng(0).normal(size=(n, k // 32, scales)).astype(np.float16).view(np.uint8)
    )
    panels = torch.empty(rows.size, dtype=torch.uint8)
    library().ld_pack(rows.ctypes.data, panels.data_ptr(), n, k, kind)
    return Matrix(panels.data_ptr(), bias.data_ptr(), n, k, kind), (panels, bias, rows)


def logits(fresh, w, h):
    norm = torch.linspace(0.5, 1.5, w.k)
    y = torch.full((len(h), w.n), float("nan"))
    fresh.ld_head(ctypes.addressof(w), norm.data_ptr(), 1e-5, len(h), h.data_ptr(), y.data_ptr())
    return y


SHAPES = [(F32, 50, 70), (F32, 2000, 192), (BF16, 50, 70), (BF16, 3000, 192), (Q4_1, 4000, 96), (Q8_0, 3008, 64)]


@pytest.mark.parametrize(("kind", "n", "k"), SHAPES)
def test_a_matrix_gives_each_row_what_it_gives_alone(fresh, kind, n, k):
    w, kept = matrix(kind, n // 16 * 16 if kind in BYTES else n, k)
    h = torch.randn(max(COUNTS), k)
    alone = torch.cat([logits(fresh, w, row[None].clone()) for row in h])
    assert alone.isfinite().all() and len(kept) >= 2
    for count in COUNTS:
        assert torch.equal(logits(fresh, w, h[:count]), alone[:count])


def numbers(kind, rows):
    """What random rows of blocks (n, blocks, bytes) stand for, in float64."""
    d = rows[..., :2].copy().view(np.float16).astype(float)
    if kind == Q8_0:
        weights = d * rows[..., 2:].view(np.int8)
    else:
        codes = np.concatenate([rows[..., 4:] & 15, rows[..., 4:] >> 4], -1)
        weights = d * codes + rows[..., 2:4].copy().view(np.float16).astype(float)
    return torch.from_numpy(weights).flatten(1)


@pytest.mark.parametrize("kind", [Q4_1, Q8_0])
def test_blocks_give_what_their_numbers_give_to_the_rounding_of_x(fresh, kind):
    """x plain, with an outlier, with a zero and a far smaller block, and in one block alone: each of 15 bits."""
    w, kept = matrix(kind, 512, 1536)
    h = torch.randn(4, w.k)
    h[1, 70] = 40
    h[2, :32], h[2, 32:64] = 0, h[2, 32:64] * 1e-7
    h[3, 32:] = 0
    right = h.double() / h.double().square().mean(1, keepdim=True).add(1e-5).sqrt() * torch.linspace(0.5, 1.5, w.k)
    right = right @ numbers(kind, kept[2]).T
    error = logits(fresh, w, h) - kept[1] - right
    assert (error.norm(dim=1) < 1e-4 * right.norm(dim=1)).all()


def test_the_kinds_are_all_there():
    assert {kind for kind, *_ in SHAPES} == {structs.F32, structs.BF16, structs.Q4_1, structs.Q8_0}
