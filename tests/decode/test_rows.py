"""Several rows at once in C: each is, to the bit, what it is alone, for each kind, number of rows and of threads; and
blocks give what their numbers give."""

import contextlib
import ctypes
import functools
import platform
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lora_drop.decode.native import loader
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.plan import Head
from lora_drop.decode.native.structs import BF16, F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, Ends, Matrix
from lora_drop.decode.native.weights import BLOCK_KINDS
from lora_drop.errors import LoraDropError

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler here")
COUNTS = [*range(1, 10), 15, 16, 17, 64]
GGUF_KINDS = {kind: gguf.GGMLQuantizationType[name] for name, kind in BLOCK_KINDS.items()}
SCALES = {Q4_0: [0], Q4_1: [0, 2], Q8_0: [0], Q4_K: [0, 2], Q6_K: [208]}  # where a block's float16 numbers are


def processor():
    """What this one can do, as the system tells it; nothing on another family."""
    if platform.machine() != "x86_64":
        return set()
    return set(Path("/proc/cpuinfo").read_text().split())


OWN = "one thread", "two threads"  # of the library as the program builds it
LESSER = ("plain", "avx2", "avx512")  # tests/package/test_kernels.py has all


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The library of a path by name, with a pool of its own; None where it does not run here."""
    folder = tmp_path_factory.mktemp("paths")

    @functools.cache
    def build(name):
        file = folder / f"{name}.so"
        if name in OWN:
            shutil.copy(library()._name, file)
        elif platform.machine() == "x86_64":
            flags = (*loader.FLAGS, *loader._processor_flags(loader.PATHS[name]))
            loader.compile_library(loader.find_compiler(), flags, file)
        with contextlib.suppress(LoraDropError):  # another family, or it has not these instructions
            built = loader.bind(file)
            built.ld_threads(1 if name == "one thread" else 2)
            return built
        return None

    return build


# Each lesser path is compiled, which takes ten seconds.
@pytest.fixture(scope="module", params=[*OWN, *(pytest.param(name, marks=pytest.mark.full) for name in LESSER)])
def fresh(request, path):
    """The library, and as it is for lesser processors than this one may be."""
    if (built := path(request.param)) is None:
        pytest.skip("this processor has no such instructions")
    return built


@pytest.mark.full
def test_every_path_that_this_processor_has_is_tested(path, capsys):
    """By what the system says of it and not by what the library does; and the run lists them."""
    able = processor()
    best = "plain"
    if "avx2" in able:
        best = "avx2"
    if "avx512bw" in able:
        best = "avx512" + "-vnni" * ("avx512_vnni" in able) + "-bf16" * ("avx512_bf16" in able)
    names = {name: one.ld_path().decode() for name in (*OWN, *LESSER) if (one := path(name))}
    with capsys.disabled():
        print(f"\nC kernels tested: {', '.join(sorted(set(names.values())))}")
    if able:
        has = {"plain": "lm", "avx2": "avx2", "avx512": "avx512bw"}
        assert names == dict.fromkeys(OWN, best) | {name: name for name, flag in has.items() if flag in able}


def matrix(kind, n, k):
    """A random one, and what keeps its memory."""
    torch.manual_seed(n + k)
    bias = torch.randn(n)
    if kind in (F32, BF16):
        data = torch.randn(n, k, dtype=torch.float32 if kind == F32 else torch.bfloat16)
        return Matrix(data.data_ptr(), bias.data_ptr(), n, k, kind), (data, bias)
    weights, size = gguf.GGML_QUANT_SIZES[GGUF_KINDS[kind]]
    rng = np.random.default_rng(k)
    rows = rng.integers(0, 256, (n, k // weights, size), dtype=np.uint8)
    for at in SCALES[kind]:
        rows[..., at : at + 2] = rng.normal(size=(n, k // weights, 1)).astype(np.float16).view(np.uint8)
    panels = torch.empty(rows.size, dtype=torch.uint8)
    library().ld_pack(rows.ctypes.data, panels.data_ptr(), n, k, kind)
    return Matrix(panels.data_ptr(), bias.data_ptr(), n, k, kind), (panels, bias, rows.reshape(n, -1))


def joined(*pieces):
    """Matrices one after the other as one, and what keeps their memory."""
    bias, matrices = torch.cat([kept[1] for _, kept in pieces]), [Matrix.from_buffer_copy(w) for w, _ in pieces]
    for w, after in zip(matrices[-2::-1], matrices[:0:-1], strict=True):
        w.n, w.next = w.n + after.n, ctypes.addressof(after)
    matrices[0].bias = bias.data_ptr()
    return matrices[0], (bias, matrices)


def logits(fresh, w, h):
    norm, head = torch.linspace(0.5, 1.5, w.k), Head(len(h), w.n)
    head.logits.fill_(float("nan"))
    ends = Ends(Matrix(), w, norm.data_ptr(), 1e-5)
    fresh.ld_head(ctypes.addressof(ends), h.data_ptr(), head.address)
    return head.logits


SHAPES = [
    *[(F32, 50, 70), (F32, 2000, 192), (BF16, 50, 70), (BF16, 3000, 192)],
    *[(Q4_0, 4000, 96), (Q4_1, 4000, 96), (Q8_0, 3008, 64), (Q4_K, 2000, 256), (Q6_K, 1504, 512)],
]


@pytest.mark.parametrize(("kind", "n", "k"), SHAPES)
def test_a_matrix_gives_each_row_what_it_gives_alone(fresh, kind, n, k):
    w, kept = matrix(kind, n, k)
    h = torch.randn(max(COUNTS), k)
    alone = torch.cat([logits(fresh, w, row[None].clone()) for row in h])
    assert alone.isfinite().all() and len(kept) >= 2
    for count in COUNTS:
        assert torch.equal(logits(fresh, w, h[:count]), alone[:count])


@pytest.mark.parametrize("kind", BLOCK_KINDS.values(), ids=BLOCK_KINDS)
def test_blocks_give_what_their_numbers_give_to_the_rounding_of_x(fresh, kind):
    """x plain, with an outlier, with a zero and a far smaller block, and in one block alone: each of 15 bits."""
    w, kept = matrix(kind, 512, 1536)
    h = torch.randn(4, w.k)
    h[1, 70] = 40
    h[2, :32], h[2, 32:64] = 0, h[2, 32:64] * 1e-7
    h[3, 32:] = 0
    right = h.double() / h.double().square().mean(1, keepdim=True).add(1e-5).sqrt() * torch.linspace(0.5, 1.5, w.k)
    right = right @ torch.from_numpy(gguf.dequantize(kept[2], GGUF_KINDS[kind])).double().T
    error = logits(fresh, w, h) - kept[1] - right
    assert (error.norm(dim=1) < 1e-4 * right.norm(dim=1)).all()


def test_a_matrix_of_several_kinds_gives_what_each_gives_alone(fresh):
    pieces = [matrix(kind, n, 512) for kind, n in ((Q4_K, 208), (F32, 80), (Q6_K, 16), (Q8_0, 144), (BF16, 7))]
    h = torch.randn(3, 512)
    alone = torch.cat([logits(fresh, w, h) for w, _ in pieces], 1)
    whole, kept = joined(*pieces)
    assert torch.equal(logits(fresh, whole, h), alone) and kept
