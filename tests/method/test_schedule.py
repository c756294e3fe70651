"""Which layers run at which step."""

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import ModelShape, kv_saved, speed_bound, step_bytes
from lora_drop.method.schedule import Schedule, average_period, baseline_schedule, dropped_layers


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
    ("prompt", "full"),
    [
        (1, [4, 8, 12, 16]),
        (2, [3, 7, 8, 11, 15, 16]),
        (3, [2, 6, 8, 10, 14, 16]),
        (4, [1, 5, 8, 9, 13, 16]),
        (37, [4, 8, 12, 16]),
        (40, [1, 5, 8, 9, 13, 16]),
    ],
)
def test_the_schedule_of_the_published_code(prompt, full):
    """Counted by hand, and by the code's own condition: `gen` counts the calls, prefill being 0."""
    schedule = LoraDropConfig(8, drop_layers=(1, 2, 3), reuse="anchor", refresh_position=4).schedule_for(6)
    kinds = [schedule.kind(step, prompt) for step in range(17)]
    assert [step for step in range(1, 17) if kinds[step] == "refresh"] == full and kinds[0] == "prefill"
    lora = [gen for gen in range(1, 17) if gen % 8 != 0 and (prompt - 1 + gen) % 4 != 0]
    assert [step for step in range(17) if kinds[step] == "lora"] == lora
    for step in range(17):
        held = prompt + sum(at <= step for at in full)
        assert schedule.refreshes(prompt, step) == held - prompt
        assert schedule.kv_length(2, prompt, step) == held and schedule.kv_length(4, prompt, step) == prompt + step
    shape = ModelShape(6, 64, 4, 2, 16, 128, 256, tied=True)
    read = [step_bytes(shape, schedule, step, prompt, 1) for step in range(1, 17)]
    base = sum(step_bytes(shape, baseline_schedule(6), step, prompt, 1) for step in range(1, 17))
    assert speed_bound(shape, schedule, 16, prompt) == pytest.approx(base / sum(read))
    weights = [step_bytes(shape, schedule, step, prompt, 1, kv=False) for step in range(1, 9)]
    assert speed_bound(shape, schedule, prompt_tokens=prompt) == pytest.approx(8 * max(weights) / sum(weights))


def test_average_period():
    assert average_period(10, 4) == 2.5 and average_period(10, 0) is None


def test_a_screened_head_alone_has_lora_steps():
    schedule = Schedule(3, 6, (), head="screened")
    assert not schedule.is_baseline and [schedule.kind(step) for step in (1, 2, 3)] == ["lora", "lora", "refresh"]
    assert Schedule(1, 6, (2,), head="screened").is_baseline
    assert baseline_schedule(6) == Schedule(1, 6, ()) and baseline_schedule(6).first_skipped == 6
    assert Schedule(4, 6, (2, 4)).first_skipped == 2


@pytest.mark.parametrize("on", [True, False])
def test_a_baseline_watches_and_verifies_nothing(on):
    rules = {"refresh_entropy": 0.0, "refresh": "repair", "kv": "write", "accept": 0.5}
    schedule = Schedule(4, 6, (2,) if on else (), **rules)
    assert (schedule.is_adaptive, schedule.repairs, schedule.verifies) == 3 * (on,)
    assert Schedule(4, 6, (2,), refresh_entropy=0).is_adaptive
    assert not Schedule(4, 6, (2,), accept=0.5).verifies and not Schedule(4, 6, (2,), refresh="repair").verifies
    assert not Schedule(4, 6, (2,)).is_adaptive and not Schedule(4, 6, (2,)).repairs


@pytest.mark.parametrize(
    ("rules", "fixed", "happened"),
    [
        ({"kv": "skip"}, 10 + 2, 10 + 3),
        ({"kv": "write"}, 10 + 11, 10 + 11),
        ({"kv": "write", "refresh": "repair"}, 10 + 8, 10 + 7),
        ({"kv": "skip", "refresh": "repair"}, 10 + 2, 10 + 3),
    ],
)
def test_tokens_in_the_cache_of_a_skipped_layer(rules, fixed, happened):
    """After 11 steps on a prompt of 10: at period 4, and with refreshes at steps 2, 5 and 7."""
    schedule = Schedule(4, 6, (2,), **rules)
    assert schedule.kv_length(2, 10, 11) == fixed
    assert schedule.kv_length(2, 10, 11, refreshes=3, last_refresh=7) == happened
    assert schedule.kv_length(1, 10, 11, refreshes=3, last_refresh=7) == 21
