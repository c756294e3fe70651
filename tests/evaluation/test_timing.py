"""Lanes timed: what their passes say, tokens taken back included. No time is judged."""

import dataclasses

import pytest
import torch

from lora_drop.evaluation.measure.timing import interval_of, median_ms, rate_of, time_lanes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import speed_bound
from lora_drop.method.schedule import baseline_schedule
from lora_drop.run.request import LanePlan
from lora_drop.run.trace.records import BASELINE, LORA_DROP, JudgeRecord, RewindRecord, StepRecord

PROMPT = torch.tensor([[5, 99, 17, 42, 200]])


def timed(tiny, tokens=20, **settings):
    reference = dataclasses.replace(tiny, weights=None)
    config = LoraDropConfig(drop_ratio=1.0, adapters="none", **settings)
    plans = {
        BASELINE: LanePlan("", LoraDropConfig(period=1), baseline_schedule(tiny.num_layers)),
        LORA_DROP: LanePlan("", config, config.schedule_for(tiny.num_layers)),
    }
    return time_lanes(reference, reference.new_decoder(), PROMPT, plans, tokens), plans[LORA_DROP]


def test_every_step_of_both_lanes_is_there(tiny):
    found, plan = timed(tiny, period=3)
    for lane, passes in found.passes.items():
        assert [one.step for one in passes] == list(range(20))
        assert sum(one.ms for one in passes[1:]) == pytest.approx(found.lanes[lane].decode_ms)
        assert rate_of([found], lane) == pytest.approx(found.lanes[lane].tokens_per_second)
    assert set(median_ms(found.passes[LORA_DROP])) == {"lora", "refresh"}
    assert set(median_ms(found.passes[BASELINE])) == {"refresh"}
    assert found.bound(LORA_DROP, plan, tiny.shape) == speed_bound(tiny.shape, plan.schedule, 19, 5)
    low, high = interval_of([found, found], LORA_DROP)
    assert 0 < low <= high


def test_passes_for_tokens_taken_back_count(tiny):
    found, plan = timed(tiny, period=4, refresh="repair", kv="write", accept=1.0)
    lane, passes = found.lanes[LORA_DROP], found.passes[LORA_DROP]
    assert lane.accepted < lane.drafts, "the untrained rule has drafts that do not stay"
    assert any(isinstance(one, RewindRecord) for one in passes) and lane.tokens == found.lanes[BASELINE].tokens
    ran = [one for one in passes if isinstance(one, (StepRecord, JudgeRecord))]
    assert len(ran) > 20 and sum(one.ms for one in ran[1:]) == pytest.approx(lane.decode_ms)
    kept_all = speed_bound(tiny.shape, plan.schedule, 19, 5)
    assert found.bound(LORA_DROP, plan, tiny.shape) < kept_all, "what is taken back was read for nothing"
