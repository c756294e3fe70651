"""Bytes, the KV formula and the bound, against figures by hand and published ones."""

from types import SimpleNamespace

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import (
    BytesRead,
    Corrections,
    ModelShape,
    accepted_share,
    chance_of,
    human_bytes,
    kv_bytes,
    kv_saved,
    speed_bound,
    step_bytes,
)
from lora_drop.method.paper import SHAPES as PAPER_SHAPES
from lora_drop.method.schedule import Schedule, baseline_schedule

SMOLLM2 = ModelShape(30, 576, 9, 3, 64, 1536, 49152, tied=True)
SHAPES = PAPER_SHAPES | {"SmolLM2": SMOLLM2}

SIZES = (3, 8, 2, 1, 4, 16, 32)  # layers, D, heads, K/V heads, their size, MLP, vocabulary
SMALL = ModelShape(*SIZES, tied=True)
HEAD, REST = 32 * 8, 2 * 8  # the head; the last norm and one row of the embedding
KV, ATTENTION, MLP = 2 * 4 * 8, 8 + 64 + 64 + 64, 8 + 3 * 8 * 16  # weights of a layer, norms included
LAYER = ATTENTION + MLP


@pytest.mark.parametrize(
    ("prompt", "steps", "period", "n"), [(1, 0, 4, 13), (9, 1, 4, 13), (40, 127, 4, 13), (5, 8, 3, 1)]
)
def test_kv_formula(prompt, steps, period, n):
    schedule = Schedule(period, 30, tuple(range(4, 4 + n)))
    expected = 2 * 3 * 64 * 4 * ((30 - n) * (prompt + steps) + n * (prompt + steps // period))
    assert kv_bytes(SMOLLM2, schedule, prompt, steps, 4) == expected
    write = Schedule(period, 30, schedule.dropped, kv="write")
    assert kv_bytes(SMOLLM2, write, prompt, steps, 4) == 2 * 3 * 64 * 4 * 30 * (prompt + steps)


@pytest.mark.parametrize(("dropped", "period", "bound"), [(16, 4, 1.54), (24, 4, 2.10), (24, 8, 2.57)])
def test_bound_of_llama3_8b_with_that_many_layers_dropped(dropped, period, bound):
    schedule = Schedule(period, 32, tuple(range(4, 4 + dropped)))
    assert round(speed_bound(SHAPES["LLaMA3-8B"], schedule), 2) == bound


@pytest.mark.parametrize(
    ("model", "ratio", "period", "bound"),
    [
        ("LLaMA3-8B", 0.5, 4, 1.44),
        ("LLaMA3-8B", 0.75, 4, 1.84),
        ("LLaMA3-8B", 0.75, 8, 2.15),
        ("LLaMA2-7B", 0.75, 8, 2.29),
        ("Qwen2.5-7B", 0.75, 8, 2.08),
        ("Qwen2.5-14B", 0.75, 8, 2.31),
        ("SmolLM2", 0.5, 4, 1.34),
        ("SmolLM2", 0.75, 4, 1.65),
        ("SmolLM2", 0.75, 8, 1.85),
    ],
)
def test_published_bounds(model, ratio, period, bound):
    shape = SHAPES[model]
    schedule = LoraDropConfig(period=period, drop_ratio=ratio).schedule_for(shape.num_layers)
    assert speed_bound(shape, schedule) == pytest.approx(bound, abs=0.0055)


def test_bound_of_dropped_attention_is_small():
    schedule = LoraDropConfig(part="attention").schedule_for(30)
    assert round(speed_bound(SMOLLM2, schedule), 2) == 1.07


def test_refreshes_that_happened_take_the_place_of_the_fixed_ones():
    schedule = Schedule(4, 30, (5, 9), kv="skip")
    fixed = speed_bound(SMOLLM2, schedule, 10, 7, Corrections(16))

    def bound_with(refreshes):
        read = BytesRead(SMOLLM2, schedule, 7, Corrections(16))
        for step in range(1, 11):
            read.step(step, "refresh" if step in refreshes else "lora")
        return read.bound

    assert bound_with([4, 8]) == fixed
    full, lora = baseline_schedule(30), Schedule(1000, 30, (5, 9))
    early = [2, 3, 7]
    base = sum(step_bytes(SMOLLM2, full, s, 7, 1) for s in range(1, 11))
    own = 0
    for s in range(1, 11):
        if s not in early:
            own += step_bytes(SMOLLM2, lora, s, 7, 1, Corrections(16))  # no dropped layer reads any K/V
            continue
        missing = s - sum(e <= s for e in early)  # entries that the two dropped layers never got
        own += step_bytes(SMOLLM2, full, s, 7, 1) - 2 * missing * SMOLLM2.kv_per_token
    assert bound_with(early) == pytest.approx(base / own, rel=1e-12)
    assert bound_with(range(1, 11)) == 1.0 < base / own < fixed
    assert kv_bytes(SMOLLM2, schedule, 7, 10, 2, refreshes=3) == 2 * 3 * 64 * 2 * (28 * 17 + 2 * 10)


def test_shapes_count_the_weights_of_the_real_models(any_tiny):
    shape = any_tiny.shape
    assert shape.params == sum(p.numel() for p in any_tiny.model.parameters())
    assert SMOLLM2.params == 134_515_008  # the bundled model


def test_human_bytes():
    assert [human_bytes(n) for n in (0, 1023, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 B", "1023 B", "1.00 KiB", "3.00 MiB", "5120.00 GiB"
    ]  # fmt: skip


def test_weights_of_a_small_shape():
    assert SMALL.layer_weights == ((0, KV), (8, ATTENTION - 8), (8, MLP - 8)) and SMALL.kv_per_token == 8
    assert SMALL.params == HEAD + 8 + 3 * LAYER
    assert ModelShape(*SIZES, tied=False).params == 2 * HEAD + 8 + 3 * LAYER
    biased = ModelShape(*SIZES, tied=True, qkv_bias=True)
    assert biased.layer_weights == ((8, KV), (8 + 16, ATTENTION - 8), (8, MLP - 8))
    normed = ModelShape(*SIZES, tied=True, qk_norm=True)
    assert normed.layer_weights == ((4, KV), (8 + 8, ATTENTION - 8), (8, MLP - 8))


def test_packed_layers_cost_less_and_norms_the_same():
    half = ModelShape(*SIZES, tied=True, matrix_size=0.5)
    assert half.layer_costs() == 3 * [(KV / 2, 8 + 192 / 2, 8 + 384 / 2)]
    uneven = ModelShape(*SIZES, tied=True, layer_sizes=((0.5, 0.25, 1), (1, 1, 1), (1, 1, 0.25)))
    assert uneven.layer_costs() == [(KV / 2, 8 + 192 / 4, MLP), (KV, ATTENTION, MLP), (KV, ATTENTION, 8 + 384 / 4)]


def test_the_shape_of_a_config():
    sizes = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    config = SimpleNamespace(**sizes, vocab_size=32, tie_word_embeddings=True, model_type="llama")
    assert ModelShape.from_config(config) == ModelShape(3, 8, 2, 2, 4, 16, 32, tied=True)
    config.num_key_value_heads, config.head_dim, config.model_type = 1, 5, "qwen2"
    assert ModelShape.from_config(config) == ModelShape(3, 8, 2, 1, 5, 16, 32, tied=True, qkv_bias=True)
    config.model_type, config.tie_word_embeddings = "qwen3", False
    assert ModelShape.from_config(config) == ModelShape(3, 8, 2, 1, 5, 16, 32, tied=False, qk_norm=True)
    config.model_type, config.attention_bias = "mistral", True
    assert ModelShape.from_config(config) == ModelShape(3, 8, 2, 1, 5, 16, 32, tied=False, qkv_bias=True)


def test_bytes_of_a_full_step():
    full = HEAD + REST + 3 * LAYER
    assert step_bytes(SMALL, Schedule(4, 3, (1,)), 4, 5, 2, kv=False) == 2 * full
    assert step_bytes(SMALL, baseline_schedule(3), 3, 5, 2) == 2 * (full + 3 * 8 * (5 + 3))
    assert step_bytes(SMALL, Schedule(4, 3, (1,)), 4, 5, 1) == full + 2 * 8 * 9 + 8 * 6  # a hole in layer 1
    packed = ModelShape(*SIZES, tied=True, head_size=0.5)
    assert step_bytes(packed, baseline_schedule(3), 1, 0, 1, kv=False) == HEAD / 2 + REST + 3 * LAYER


def test_bytes_of_a_correction():
    schedule = Schedule(4, 3, (1,))
    bare = step_bytes(SMALL, schedule, 1, 5, 1)
    assert bare == HEAD + REST + 2 * LAYER + 2 * 8 * 6
    packed = ModelShape(*SIZES, tied=True, part_size=0.5)
    assert step_bytes(packed, schedule, 1, 5, 1, Corrections(2)) - bare == (2 * 2 / 2 + 1) * 8  # the gate is whole
    assert step_bytes(SMALL, schedule, 1, 5, 1, Corrections(2, [2])) == bare
    assert step_bytes(SMALL, schedule, 1, 5, 1, Corrections(2, [1])) == bare + (2 * 2 + 1) * 8
    assert step_bytes(SMALL, Schedule(4, 3, (1,), "state"), 1, 5, 1, Corrections(2)) == bare + 2 * 2 * 8  # no gate
    full = step_bytes(SMALL, schedule, 4, 5, 1, Corrections(2))
    assert full == step_bytes(SMALL, schedule, 4, 5, 1), "a full step reads no correction"


def test_bytes_of_a_screened_head():
    shape = ModelShape(*SIZES, tied=True, head_size=0.25)
    preview = Corrections(head_rank=4, head_best=6, code_size=0.5)
    screened = 32 * 4 * 0.5 + 4 * 8 + 6 * 8 * 0.25
    schedule = Schedule(4, 3, (), head="screened")
    layers = 3 * LAYER + REST
    assert step_bytes(shape, schedule, 1, 0, 1, kv=False, corrections=preview) == screened + layers
    assert step_bytes(shape, schedule, 4, 0, 1, kv=False, corrections=preview) == HEAD / 4 + layers
    assert step_bytes(shape, schedule, 1, 0, 1, kv=False) == HEAD / 4 + layers  # no such part in the bank
    assert (
        step_bytes(shape, Schedule(4, 3, ()), 1, 0, 1, kv=False, lora=True, corrections=preview) == HEAD / 4 + layers
    )


def test_a_step_that_was_no_lora_step_reads_all():
    schedule = Schedule(4, 3, (1,), kv="write", refresh="repair")
    lora, full = HEAD + REST + 2 * LAYER + 2 * 8 * 7, HEAD + REST + 3 * LAYER + 2 * 8 * 7
    assert step_bytes(SMALL, schedule, 2, 5, 1) == lora, "a repair writes the skipped layer's K/V later"
    assert step_bytes(SMALL, schedule, 2, 5, 1, lora=False, refreshes=1, last_refresh=2) == full + 8 * 7
    written = step_bytes(SMALL, Schedule(4, 3, (1,), kv="write"), 2, 5, 1)
    assert written == lora + 8 + KV
    attention = step_bytes(SMALL, Schedule(4, 3, (1,), part="attention"), 2, 5, 1)
    assert attention == lora + MLP


def test_bytes_read_with_rejected_drafts():
    """Steps 1 to 3 are LoRA steps, 2 and 3 are taken back, 2 is run again in full, and a last pass verifies."""
    schedule = Schedule(4, 3, (1,), kv="write", refresh="repair", accept=0.5)
    corrections = Corrections(2, [1])
    read = BytesRead(SMALL, schedule, 5, corrections)
    assert read.bound is None
    for step in (1, 2, 3):
        read.step(step, "lora")
    read.rewind(1)
    read.step(2, "refresh")
    read.step(3, "lora")
    read.verify()
    full = baseline_schedule(3)
    base = sum(step_bytes(SMALL, full, step, 5, 1) for step in (1, 2, 3))
    own = sum(step_bytes(SMALL, schedule, step, 5, 1, corrections, lora=True) for step in (1, 2, 3, 3))
    own += step_bytes(SMALL, schedule, 2, 5, 1, lora=False, refreshes=1, last_refresh=2)
    own += step_bytes(SMALL, schedule, 3, 5, 1, lora=False, refreshes=1, last_refresh=2)
    assert read.bound == base / own


def test_the_bound_of_one_period_by_hand():
    full, lora = HEAD + REST + 3 * LAYER, HEAD + REST + 2 * LAYER + (2 * 2 + 1) * 8
    assert speed_bound(SMALL, Schedule(4, 3, (1,)), corrections=Corrections(2)) == 4 * full / (3 * lora + full)
    assert speed_bound(SMALL, Schedule(4, 3, (1,)), corrections=Corrections(2, [2])) > 4 * full / (3 * lora + full)
    assert speed_bound(SMALL, Schedule(4, 3, (1,)), steps=0) == 1.0


def test_the_share_of_kv_saved():
    assert kv_saved(SMALL, Schedule(4, 3, (1,)), 10, 8) == pytest.approx(1 - (2 * 18 + 12) / (3 * 18))
    assert kv_saved(SMALL, Schedule(4, 3, (1,)), 0, 0) == 0.0
    assert kv_bytes(SMALL, Schedule(4, 3, (1,), kv="write", refresh="repair"), 10, 11, 2, last_refresh=7) == (
        2 * 8 * (2 * 21 + 17)
    )


def test_rejected_drafts_lower_the_bound_to_that_of_the_passes():
    schedule = Schedule(4, 30, tuple(range(4, 14)), refresh="repair", kv="write", accept=0.5)
    whole, rejecting = BytesRead(SMOLLM2, schedule, 0), BytesRead(SMOLLM2, schedule, 0)
    at = 0
    for cycle in range(40):
        for i in range(1, 5):
            whole.step(4 * cycle + i, "lora" if i < 4 else "refresh")
        kept = cycle % 4  # of three drafts
        for i in range(1, 4):
            rejecting.step(at + i, "lora")
        rejecting.rewind(at + kept)
        at += kept + 1
        rejecting.step(at, "refresh")
    assert rejecting.bound == pytest.approx(whole.bound * (1 + 0.5 * 3) / 4, rel=0.02)


def test_the_chance_of_a_draft_is_that_of_its_share():
    for chance in (0.0, 0.3, 0.77, 1.0):
        for drafts in (1, 2, 15):
            assert chance_of(accepted_share(chance, drafts), drafts) == pytest.approx(chance, abs=1e-4)
    assert accepted_share(0.5, 3) == pytest.approx((0.5 + 0.25 + 0.125) / 3)
