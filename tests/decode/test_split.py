"""Triton's attention, on a CPU under Triton's interpreter, and compiled for GPUs that are not there."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.method.schedule import Schedule
from tests.support import ROOT
from tests.support.decoding import TARGET, decoder_of, logits_of, random_bank

pytest.importorskip("triton", reason="Triton is not installed: torch's CPU builds come without it")
# Interpreted where there is no GPU: see conftest.py.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture(scope="module")
def split():
    from lora_drop.decode.static import split

    return split


def expected(heads, store, places, count):
    """The same by torch, in float64."""
    kv, size = store.shape[2], store.shape[4]
    query = heads[:, :count].transpose(0, 1)[None].double()
    keys, values = store.nan_to_num().double().unbind(0)
    mask = torch.arange(store.shape[3]) <= places[:, None]
    mixed = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=count != kv)
    return mixed[0].transpose(0, 1).reshape(len(heads), count * size)


@pytest.mark.parametrize(("length", "rows"), [(1, 1), (5, 4), (64, 1), (65, 2), (300, 8), (2500, 1), (4096, 4)])
@pytest.mark.parametrize(("count", "kv", "size"), [(4, 2, 16), (8, 1, 64), (3, 3, 80)])
def test_it_is_attention(split, length, rows, count, kv, size):
    """From one key to more than a block of each part; rows that repeat the last one; nothing is read beyond it."""
    torch.manual_seed(length)
    store = torch.randn(2, 1, kv, -(-length // 64) * 64, size)
    store[:, :, :, length:] = torch.nan
    heads = torch.randn(rows, count + 2 * kv, size)
    places = (length - rows + torch.arange(rows)).clamp(0, length - 1)
    if rows > 2:
        places[-2] = places[-1]
    mixed = split.attend(*(tensor.to(DEVICE) for tensor in (heads, store, places)), count).cpu()
    torch.testing.assert_close(mixed.double(), expected(heads, store, places, count), rtol=1e-5, atol=1e-5)


def test_in_half_precision(split):
    """In bfloat16 on a GPU; the interpreter multiplies its bits as whole numbers, so here in float16."""
    torch.manual_seed(0)
    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    store, heads = torch.randn(2, 1, 2, 512, 64).to(kind), torch.randn(1, 12, 64).to(kind)
    places = torch.tensor([400])
    mixed = split.attend(*(tensor.to(DEVICE) for tensor in (heads, store, places)), 8).cpu()
    assert mixed.dtype == kind
    torch.testing.assert_close(mixed.double(), expected(heads, store, places, 8), rtol=0.02, atol=0.01)


@pytest.mark.skipif(DEVICE == "cuda", reason="test_graphs.py has it on a GPU")
@pytest.mark.parametrize(
    ("refresh", "kv"),
    [
        ("repair", "write"),
        *(pytest.param("single", kv, marks=pytest.mark.full) for kv in ("skip", "write")),
        pytest.param("repair", "skip", marks=pytest.mark.full),
    ],
)
def test_a_lane_over_it_is_the_reference(split, tiny, refresh, kv):
    fast, slow = decoder_of(tiny.model, "static"), ReferenceDecoder(tiny.model)
    fast.weights.split = split
    schedule, bank = Schedule(3, tiny.num_layers, (2, 4), kv=kv, refresh=refresh), random_bank(tiny, "residual")
    one, two = (logits_of(decoder, schedule, bank, target=TARGET[:4])[0] for decoder in (fast, slow))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-4)


COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lora_drop.decode.static import split

def binary(kernel, sizes, kind, card):
    floats = {"store": kind, "heads": kind, "out": kind, "places": "*i64", "scale": "fp32"}
    whole = {"rows": "i32", "capacity": "i32", "stride": "i32"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in sizes else floats.get(n) or whole.get(n) or "*fp32" for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs={n: sizes[n] for n in names if n in sizes})
    return len(triton.compile(source, target=GPUTarget("cuda", card, 32)).asm["cubin"])

for card, kind, rows in ((80, "*bf16", 1), (90, "*bf16", 8), (80, "*fp32", 1)):
    sizes = {"GROUP": 4, "SIZE": 128, "WIDE": 128, "M": 4 * rows, "PARTS": split.SPLITS}
    more = {"KV": 8, "BM": split.BLOCK_M, "BN": split.BLOCK_N}
    print(binary(split._part, sizes | more, kind, card))
    print(binary(split._join, sizes | {"HEADS": 32}, kind, card))
"""


@pytest.mark.full
def test_the_kernels_compile_for_cards_that_are_not_here():
    """To machine code of sm80 and sm90, for the heads of Llama-3-8B; the assembler comes with Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILES], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(int(size) > 1000 for size in done.stdout.split()) and len(done.stdout.split()) == 6
