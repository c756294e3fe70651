"""Two lanes timed: what their passes say, tokens taken back included. No time is judged."""

import dataclasses

import pytest
import torch

from lora_drop.evaluation.timing import Pass, Timed, bound_of, time_lanes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import speed_bound
from lora_drop.run.request import BASELINE, LORA_DROP

PROMPT = torch.tensor([[5, 99, 17, 42, 200]])


def timed(tiny, tokens=20, **settings):
    reference = dataclasses.replace(tiny, weights=None)
    schedule = LoraDropConfig(drop_ratio=1.0, **settings).schedule_for(tiny.num_layers)
    return time_lanes(reference, reference.new_decoder(), PROMPT, {LORA_DROP: (schedule, None)}, tokens), schedule


def test_every_decode_step_of_both_lanes_is_there(tiny):
    found, schedule = timed(tiny, period=3)
    assert [one.step for one in found.passes[BASELINE]] == [one.step for one in found.passes[LORA_DROP]]
    assert found.refreshes() == [3, 6, 9, 12, 15, 18] and len(found.cycles()) == 6
    for lane, passes in found.passes.items():
        assert sum(one.ms for one in passes) == pytest.approx(found.lanes[lane].decode_ms)
    assert set(found.median_ms(LORA_DROP)) == {"lora", "refresh"} and set(found.median_ms(BASELINE)) == {"refresh"}
    assert bound_of(tiny, schedule, None, 5, found) == speed_bound(tiny.shape, schedule, 19, 5)


def test_passes_for_tokens_taken_back_count(tiny):
    found, _ = timed(tiny, period=4, refresh="repair", kv="write", accept=1.0)
    lane, passes = found.lanes[LORA_DROP], found.passes[LORA_DROP]
    assert lane.accepted < lane.drafts, "the untrained rule has drafts that do not stay"
    assert len(passes) > lane.decode_steps == 19
    assert sum(one.ms for one in passes) == pytest.approx(lane.decode_ms)
    cycles = found.cycles()
    assert sum(ours for _, ours in cycles) == pytest.approx(lane.decode_ms, rel=0.5) and len(cycles) > 4
    assert found.refreshes() == sorted(set(found.refreshes())) and found.refreshes()[-1] <= 19
    assert lane.tokens == found.lanes[BASELINE].tokens


def test_cycles_of_a_rewind_by_hand():
    base = [Pass(s, "refresh", 10.0, 1) for s in range(1, 7)]
    ours = [
        *(Pass(1, "lora", 5.0, 1), Pass(2, "lora", 5.0, 1), Pass(3, "lora", 5.0, 1)),
        Pass(2, "refresh", 14.0, 4),  # the pass of step 4 took back 2 and 3
        *(Pass(3, "lora", 5.0, 1), Pass(4, "lora", 5.0, 1), Pass(None, "judge", 9.0, 2)),
    ]
    assert Timed({}, {BASELINE: base, LORA_DROP: ours}).cycles() == [(20.0, 29.0), (20.0, 19.0)]
