"""A prompt that is read once: in parts, for lanes of any schedule, its attention in C."""

import ctypes
import itertools

import pytest
import torch
from torch.nn import functional as F

from lora_drop.decode import reference
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.structs import BF16, F32, Layer, Store
from lora_drop.decode.step import Stopped
from lora_drop.method.schedule import PARTS, REUSE_RULES, Schedule, baseline_schedule
from lora_drop.models.load import load_model
from tests.support.decoding import DECODERS, TARGET, decoder_of, needs_compiler, random_bank

LONG = [(7 * i * i + 3 * i) % 251 for i in range(75)]


@pytest.fixture(scope="module", params=DECODERS)
def decoder(tiny, request):
    return decoder_of(tiny.model, request.param)


def stepped(decoder, state, first):
    return torch.cat([first.logits] + [decoder.step(torch.tensor([[token]]), state).logits for token in TARGET])


@pytest.mark.parametrize(("reuse", "part"), itertools.product(REUSE_RULES, PARTS))
def test_lanes_of_any_schedule_start_from_one_prompt(decoder, tiny, reuse, part):
    schedules = [Schedule(3, tiny.num_layers, (2, 4), reuse, part), baseline_schedule(tiny.num_layers)]
    prompt = decoder.read_prompt(torch.tensor([LONG]))
    for schedule in [*schedules, *schedules]:  # again: nothing was written into it
        state = decoder.new_state(schedule, random_bank(tiny, reuse, part))
        shared = stepped(decoder, state, decoder.start(prompt, state))
        own = decoder.new_state(schedule, random_bank(tiny, reuse, part))
        alone = stepped(decoder, own, decoder.prefill(torch.tensor([LONG]), own))
        assert torch.equal(shared, alone) and state.kv.lengths == own.kv.lengths


@pytest.mark.parametrize("size", [1, 16, 74, 75])
def test_the_parts_change_nothing(decoder, tiny, size, monkeypatch):
    whole = decoder.read_prompt(torch.tensor([LONG]))
    monkeypatch.setattr(reference, "PART", (size, size))
    parts = decoder.read_prompt(torch.tensor([LONG]))
    assert parts.kv.lengths == [75] * tiny.num_layers
    for name in ("states", "attended", "logits"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=2e-4, rtol=1e-4)
    for ours, theirs in zip(parts.kv.stores, whole.kv.stores, strict=True):
        torch.testing.assert_close(ours[:, :, :, :75], theirs[:, :, :, :75], atol=2e-4, rtol=1e-4)


def test_a_long_prompt_can_be_stopped(decoder, monkeypatch):
    monkeypatch.setattr(reference, "PART", (16, 16))
    asked = []
    with pytest.raises(Stopped):
        decoder.read_prompt(torch.tensor([LONG]), lambda: asked.append(1) or len(asked) == 3)
    assert len(asked) == 3
    monkeypatch.setattr(reference, "PART", (75, 75))
    assert decoder.read_prompt(torch.tensor([LONG]), lambda: True).kv.lengths[0] == 75  # there is nothing to wait for


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-mistral"])
def test_the_native_one_reads_as_the_reference_does(name, dtype):
    loaded = load_model(f"random:{name}", "cpu", dtype)
    ours, theirs = (
        decoder_of(loaded.model, kind).read_prompt(torch.tensor([LONG])) for kind in ("native", "reference")
    )
    for part in ("states", "attended", "logits"):  # as rounding differs, so do single numbers in bfloat16
        one, two = getattr(ours, part).float(), getattr(theirs, part).float()
        assert (one - two).norm() < {"float32": 1e-5, "bfloat16": 0.03}[dtype] * two.norm()


def attended(query, store, length, tokens):
    """`ld_prompt` on query (T, nh, hs) and store (2, 1, nkv, capacity, hs)."""
    layer = Layer(heads=query.shape[1], kv_heads=store.shape[2], head_dim=query.shape[2])
    kind = {torch.float32: F32, torch.bfloat16: BF16}[query.dtype]
    held, mixed = Store(store.data_ptr(), store.shape[3], length, kind), torch.empty_like(query)
    at = ctypes.addressof(layer), ctypes.addressof(held)
    library().ld_prompt(*at, tokens, query.data_ptr(), mixed.data_ptr())
    return mixed


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "length"), [(9, 3, 64, 333), (4, 4, 128, 70), (5, 1, 18, 129), (2, 2, 256, 65)]
)
def test_attention_in_c(heads, kv_heads, size, length, dtype):
    """Against torch's, and to the bit the same for a token whatever comes with it; what lies beyond is not read."""
    torch.manual_seed(0)
    query = 2 * torch.randn(length, heads, size, dtype=dtype)
    store = torch.full((2, 1, kv_heads, length + 7, size), torch.nan, dtype=dtype)
    store[:, :, :, :length] = torch.randn(2, 1, kv_heads, length, size, dtype=dtype)
    keys, values = store[:, :, :, :length].float().unbind(0)
    asked = query.float().transpose(0, 1)[None]
    right = F.scaled_dot_product_attention(asked, keys, values, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
    whole = attended(query, store, length, length)
    torch.testing.assert_close(
        whole.float(),
        right,
        **({"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}),
    )
    for start, end in ((0, 1), (0, 65), (40, 41), (63, length), (length - 1, length)):
        assert torch.equal(attended(query[start:end].contiguous(), store, end, end - start), whole[start:end])


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [120, 250])
def test_rows_of_a_pass_are_steps_to_the_bit_where_attention_is_split(length, dtype):
    """Some rows see keys of a further split than others do; one and several threads have read them."""
    loaded = load_model("random:tiny-llama", "cpu", dtype)
    native = decoder_of(loaded.model, "native")
    text = torch.tensor([[(7 * i * i + 3 * i) % 251 for i in range(length + 20)]])
    state = native.new_state(baseline_schedule(loaded.num_layers))
    native.prefill(text[:, :length], state)
    kv = state.kv.clone()
    single = [native.step(text[:, at : at + 1], state).logits for at in range(length, length + 20)]
    library().ld_threads(3)
    rows = native.read(text[:, length:], kv, length, ()).logits[0]
    assert torch.equal(rows, torch.cat(single))
    for ours, theirs in zip(kv.stores, state.kv.stores, strict=True):
        assert torch.equal(ours[:, :, :, : length + 20], theirs[:, :, :, : length + 20])
