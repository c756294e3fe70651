"""The schedule, the KV formula and the bound, against hand-made and published figures."""

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import ModelShape, human_bytes, kv_bytes, kv_saved, speed_bound, step_bytes
from lora_drop.method.schedule import Schedule, average_period, baseline_schedule, dropped_layers

SMOLLM2 = ModelShape(30, 576, 9, 3, 64, 1536, 49152, tied=True)
LLAMA2_7B = ModelShape(32, 4096, 32, 32, 128, 11008, 32000, tied=False)
LLAMA3_8B = ModelShape(32, 4096, 32, 8, 128, 14336, 128256, tied=False)
QWEN25_7B = ModelShape(28, 3584, 28, 4, 128, 18944, 152064, tied=False, qkv_bias=True)
QWEN25_14B = ModelShape(48, 5120, 40, 8, 128, 13824, 152064, tied=False, qkv_bias=True)


def test_dropped_layers_are_spread_evenly():
    assert dropped_layers(3, 28, 0.5) == tuple(range(4, 29, 2))
    assert dropped_layers(3, 28, 0.25) == (5, 9, 13, 18, 22, 26)  # 6.5 rounds to 6
    assert dropped_layers(3, 28, 0) == ()
    assert dropped_layers(3, 28, 1) == tuple(range(3, 29))
    assert dropped_layers(5, 5, 0.5) == ()  # 0.5 rounds to 0, half to even
    assert dropped_layers(4, 6, 0.5) == (4, 6)  # 1.5 rounds to 2


@pytest.mark.parametrize("span", range(1, 40))
def test_dropped_layers_are_distinct_and_inside(span):
    for n in range(span + 1):
        layers = dropped_layers(3, 2 + span, n / span)
        assert len(set(layers)) == len(layers) == n
        assert all(3 <= i <= 2 + span for i in layers)


def test_steps_are_counted_from_prefill():
    schedule = Schedule(4, 6, (2, 3))
    kinds = [schedule.kind(s) for s in range(9)]
    assert kinds == ["prefill", "lora", "lora", "lora", "refresh", "lora", "lora", "lora", "refresh"]
    assert schedule.active("lora") == [1, 1, 0, 0, 1, 1]
    assert schedule.active("refresh") == [1] * 6
    assert [schedule.kind(s) for s in range(3)] == ["prefill", "lora", "lora"]


def test_a_period_longer_than_the_run_never_refreshes():
    schedule = Schedule(1000, 6, (2,))
    assert {schedule.kind(s) for s in range(1, 50)} == {"lora"}
    assert schedule.kv_length(2, 7, 49) == 7
    assert schedule.kv_length(1, 7, 49) == 56


@pytest.mark.parametrize("schedule", [Schedule(1, 6, (2, 3)), Schedule(4, 6, ())])
def test_nothing_dropped_is_the_baseline(schedule):
    assert schedule.is_baseline
    assert {schedule.kind(s) for s in range(1, 9)} == {"refresh"}
    shape = ModelShape(6, 64, 4, 2, 16, 128, 256, tied=True)
    assert speed_bound(shape, schedule, 8, 5) == 1.0
    assert kv_saved(shape, schedule, 5, 8) == 0.0


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
    assert round(speed_bound(LLAMA3_8B, schedule), 2) == bound


@pytest.mark.parametrize(
    ("shape", "ratio", "period", "bound"),
    [
        (LLAMA3_8B, 0.5, 4, 1.44),
        (LLAMA3_8B, 0.75, 4, 1.84),
        (LLAMA3_8B, 0.75, 8, 2.15),
        (LLAMA2_7B, 0.75, 8, 2.29),
        (QWEN25_7B, 0.75, 8, 2.08),
        (QWEN25_14B, 0.75, 8, 2.31),
        (SMOLLM2, 0.5, 4, 1.34),
        (SMOLLM2, 0.75, 4, 1.65),
        (SMOLLM2, 0.75, 8, 1.85),
    ],
)
def test_published_bounds(shape, ratio, period, bound):
    schedule = LoraDropConfig(period=period, drop_ratio=ratio).schedule_for(shape.num_layers)
    assert speed_bound(shape, schedule) == pytest.approx(bound, abs=0.0055)


def test_bound_of_dropped_attention_is_small():
    schedule = LoraDropConfig(part="attention").schedule_for(30)
    assert round(speed_bound(SMOLLM2, schedule), 2) == 1.07


def test_step_bytes_count_what_a_dropped_layer_still_reads():
    block = Schedule(4, 30, (5,))
    write = Schedule(4, 30, (5,), kv="write")
    attention = Schedule(4, 30, (5,), part="attention")
    bare = step_bytes(SMOLLM2, block, 1, 10, 4)
    assert step_bytes(SMOLLM2, block, 1, 10, 4, rank=16) - bare == 4 * (2 * 16 * 576 + 576)
    assert step_bytes(SMOLLM2, Schedule(4, 30, (5,), "state"), 1, 10, 4, rank=16) - bare == 4 * 2 * 16 * 576
    assert step_bytes(SMOLLM2, write, 1, 10, 4) - bare == 4 * (576 + 2 * 192 * 576)
    assert step_bytes(SMOLLM2, attention, 1, 10, 4) - bare == 4 * SMOLLM2.mlp_weights
    full = step_bytes(SMOLLM2, baseline_schedule(30), 1, 10, 4)
    assert full - bare == 4 * (SMOLLM2.attention_weights + SMOLLM2.mlp_weights + SMOLLM2.kv_per_token * 11)


def test_refreshes_that_happened_take_the_place_of_the_fixed_ones():
    schedule = Schedule(4, 30, (5, 9), kv="skip")
    fixed = speed_bound(SMOLLM2, schedule, 10, 7, 16)
    assert speed_bound(SMOLLM2, schedule, 10, 7, 16, refreshes=[4, 8]) == fixed
    full, lora = baseline_schedule(30), Schedule(1000, 30, (5, 9))
    early = [2, 3, 7]
    base = sum(step_bytes(SMOLLM2, full, s, 7, 1) for s in range(1, 11))
    own = 0
    for s in range(1, 11):
        if s not in early:
            own += step_bytes(SMOLLM2, lora, s, 7, 1, 16)  # no dropped layer reads any K/V
            continue
        missing = s - sum(e <= s for e in early)  # entries that the two dropped layers never got
        own += step_bytes(SMOLLM2, full, s, 7, 1) - 2 * missing * SMOLLM2.kv_per_token
    assert speed_bound(SMOLLM2, schedule, 10, 7, 16, refreshes=early) == pytest.approx(base / own, rel=1e-12)
    assert speed_bound(SMOLLM2, schedule, 10, 7, 16, refreshes=range(1, 11)) == 1.0 < base / own < fixed
    assert kv_bytes(SMOLLM2, schedule, 7, 10, 2, refreshes=3) == 2 * 3 * 64 * 2 * (28 * 17 + 2 * 10)


def test_average_period():
    assert average_period(10, 4) == 2.5 and average_period(10, 0) is None


def test_longer_texts_gain_more():
    schedule = LoraDropConfig(drop_ratio=0.75).schedule_for(30)
    assert speed_bound(SMOLLM2, schedule, 100, 4000) > speed_bound(SMOLLM2, schedule, 100, 10) > 1.6


def test_shapes_count_the_weights_of_the_real_models(any_tiny):
    shape = any_tiny.shape
    assert shape.params == sum(p.numel() for p in any_tiny.model.parameters())


def test_bundled_shape_counts_the_bundled_weights():
    assert SMOLLM2.params == 134_515_008


def test_human_bytes():
    assert [human_bytes(n) for n in (0, 1023, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 B", "1023 B", "1.00 KiB", "3.00 MiB", "5120.00 GiB"
    ]  # fmt: skip
