"""Lanes timed: what their passes say, tokens taken back included. No time is judged."""

import dataclasses

import pytest

from lora_drop.evaluation.measure.timing import (
    acceptance_of,
    bound_of,
    interval_of,
    median_ms,
    rate_of,
    time_lanes,
)
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import speed_bound
from lora_drop.run.request import LanePlan, baseline_lane
from lora_drop.run.trace.records import BASELINE, LORA_DROP, JudgeRecord, RewindRecord, StepRecord

PROMPT = [5, 99, 17, 42, 200]


def timed(tiny, tokens=20, **settings):
    reference = dataclasses.replace(tiny, weights=None)
    config = LoraDropConfig(drop_ratio=1.0, adapters="none", **settings)
    schedule = config.schedule_for(tiny.num_layers)
    lanes = {BASELINE: baseline_lane(tiny.num_layers), LORA_DROP: LanePlan("", config, schedule)}
    return time_lanes(reference, lanes, PROMPT, tokens)


def test_every_step_of_both_lanes_is_there(tiny):
    report = timed(tiny, period=3)
    for name, lane in report.lanes.items():
        assert [one.step for one in lane.passes] == list(range(20))
        ms = report.trace.summary.lanes[name]["decode_ms"]
        assert sum(one.ms for one in lane.passes[1:]) == pytest.approx(ms)
        assert rate_of([report, report], name) == pytest.approx(1000 * 19 / ms)
    assert set(median_ms([report], LORA_DROP)) == {"lora", "refresh"}
    assert set(median_ms([report], BASELINE)) == {"refresh"}
    assert bound_of([report], LORA_DROP) == speed_bound(tiny.shape, report.lanes[LORA_DROP].schedule, 19, 5)
    low, high = interval_of([report, report], LORA_DROP)
    assert 0 < low <= high and acceptance_of([report], LORA_DROP) is None


def test_passes_for_rejected_tokens_count(tiny):
    report = timed(tiny, period=4, refresh="repair", kv="write", accept=1.0)
    lane = report.lanes[LORA_DROP]
    assert acceptance_of([report], LORA_DROP) < 1, "the full model rejects some drafts of the untrained rule"
    assert any(isinstance(one, RewindRecord) for one in lane.passes)
    assert report.trace.token_ids(LORA_DROP) == report.trace.token_ids(BASELINE)
    ran = [one for one in lane.passes if isinstance(one, (StepRecord, JudgeRecord))]
    assert len(ran) > 20 and rate_of([report], LORA_DROP) == pytest.approx(19000 / sum(one.ms for one in ran[1:]))
    all_kept = speed_bound(tiny.shape, lane.schedule, 19, 5)
    assert bound_of([report], LORA_DROP) < all_kept, "the bytes of rejected tokens were read for nothing"
