"""The native decoder's corrections and its screened head, against the reference and the whole head."""

import copy
import ctypes
from types import SimpleNamespace

import pytest
import torch

from lora_drop.decode.head import ScreenedHead
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.plan import Head, NativeScreen
from lora_drop.decode.native.structs import BF16, F32, Q8_0, Ends, Matrix
from lora_drop.decode.native.weights import BLOCK_KINDS, Packed, lay_out
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.method.schedule import Schedule
from tests.decode.test_fast import blocks
from tests.decode.test_rows import matrix
from tests.support.decoding import PROMPT, TARGET, decoder_of, outputs_of
from tests.support.parts import full_bank

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler here")


def decode(decoder, schedule, bank, prompt=PROMPT, target=TARGET):
    """Logits and watched outputs of each step, and the state at the end."""
    (_, *steps), state = outputs_of(decoder, schedule, bank, prompt, target, watch=True)
    return torch.cat([one.logits[-1:] for one in steps]), torch.cat([one.watched[:, -1:] for one in steps], 1), state


def test_a_bank_in_bfloat16_is_the_reference_s(tiny):
    model = copy.deepcopy(tiny.model).bfloat16()
    schedule = Schedule(4, tiny.num_layers, (2, 4), head="screened", refresh="repair", kv="write")
    bank = full_bank(tiny, "residual", dtype=torch.bfloat16)
    right = decode(ReferenceDecoder(copy.deepcopy(model)), schedule, bank)[0].float()
    ours = decode(NativeDecoder(model, lay_out(model, None)), schedule, bank)[0]
    assert torch.nn.functional.cosine_similarity(ours, right).min() > 0.99


def heads(kind, tokens, best, h, rank=13):
    """By the C side the whole head's logits (V,) and the screened ones, and what the preview alone gives."""
    w, kept = matrix(kind, tokens, len(h))
    generator = torch.Generator().manual_seed(best)
    project = torch.randn(rank, len(h), generator=generator) / 10
    codes = torch.randint(-8, 8, (tokens, rank), generator=generator, dtype=torch.int8)
    scale = torch.rand(tokens, -(-rank // 32), generator=generator).half().float()  # as blocks have it
    half = tokens // 2  # of two tokens each the previews are equal
    codes[half:], scale[half:] = codes[:half].clone(), scale[:half].clone()
    rows = Packed("", kept[2]) if len(kept) > 2 else None
    preview = ScreenedHead(project, codes, scale, best)
    native = NativeScreen(preview, SimpleNamespace(head_blocks=rows))
    norm = torch.ones(len(h))
    ends = Ends(Matrix(), w, norm.data_ptr(), 0.0)
    full, mixed = Head(1, tokens), Head(1, tokens, native)
    for head in (full, mixed):
        library().ld_head(ctypes.addressof(ends), h.data_ptr(), head.address)
    return full.logits[0], mixed.logits[0], preview.preview(h[None] / h.square().mean().sqrt())[0]


@pytest.mark.parametrize(
    ("kind", "tokens"), [(F32, 2010), (BF16, 2010), *((kind, 2000) for kind in BLOCK_KINDS.values()), (Q8_0, 16)]
)
@pytest.mark.parametrize("best", [1, 16, 37, 500, 3000])
def test_the_best_are_exact_and_the_others_the_preview_s(kind, tokens, best):
    h = torch.randn(256, generator=torch.Generator().manual_seed(7))
    full, mixed, preview = heads(kind, tokens, best, h)
    chosen = preview.topk(min(best, tokens)).indices
    exact = mixed == full
    assert exact.sum() == min(best, tokens), "each of the best to the bit as the whole head has it, and no other"
    rounded = {"rtol": 0, "atol": 1e-4 * float(preview.abs().max())}  # the preview of 15 bits, of the largest
    torch.testing.assert_close(preview[exact].sort().values, preview[chosen].sort().values, **rounded)
    torch.testing.assert_close(mixed[~exact], preview[~exact], **rounded)
    if best < tokens:
        assert exact[: tokens // 2].sum() - exact[tokens // 2 :].sum() == best % 2  # of two equal ones the first
    again = heads(kind, tokens, best, h)[1]
    assert torch.equal(again, mixed)


def test_what_is_not_a_number_is_found_and_stays():
    h = torch.randn(96)
    h[3] = float("nan")
    assert all(logits.isnan().all() for logits in heads(Q8_0, 2000, 37, h)[:2])


def test_of_the_screened_head_a_decoder_makes_the_codes_once(tiny):
    native = decoder_of(tiny.model, "native")
    bank, other = full_bank(tiny, "residual"), full_bank(tiny, "residual")
    schedule = Schedule(4, tiny.num_layers, (2, 4), head="screened")
    one, two, third = (native.new_state(schedule, each).screen for each in (bank, bank, other))
    assert one is two and third is not one
    assert native.new_state(Schedule(4, tiny.num_layers, (2, 4)), bank).screen is None


def test_the_packed_model_s_best_are_its_own_head_s(bundled):
    """The rows are the file's own."""
    native = NativeDecoder(bundled.model, lay_out(bundled.model, blocks(bundled.model)))
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (native._vocabulary, 32), generator=generator, dtype=torch.int8)
    preview = ScreenedHead(torch.randn(32, 576, generator=generator), codes, torch.ones(len(codes), 1), 300)
    h = torch.randn(3, 576, generator=generator)
    whole = native._logits(h)  # three rows together
    for row, right in zip(h, whole, strict=True):
        mixed = native._logits(row[None], NativeScreen(preview, native._weights))[0]
        assert (mixed == right).sum() == 300
