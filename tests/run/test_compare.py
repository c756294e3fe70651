"""Runs beside each other: their differences, figures and curves, from their traces."""

from __future__ import annotations

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.report.compare import compared
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import LORA_DROP, RewindRecord
from lora_drop.run.trace.trace import Trace, gather
from tests.support.runs import taken_back


@pytest.fixture(scope="module")
def traces(tiny) -> dict[str, Trace]:
    settings = {"max_new_tokens": 10, "ignore_eos": True}
    return {
        "a": gather(run(tiny, Request("Why?", LoraDropConfig(period=3), **settings))),
        "b": gather(run(tiny, Request("Why?", LoraDropConfig(period=4, reuse="skip"), **settings, seed=3))),
        "c": gather(run(tiny, Request("How?", LoraDropConfig(period=3), **settings, audit=False))),
    }


def test_only_what_differs_is_told(traces):
    found = compared(traces)
    assert {row["name"]: row["values"] for row in found["settings"]} == {
        "period": ["3", "4", "3"],
        "reuse": ["residual", "skip", "residual"],
        "seed": ["0", "3", "0"],
        "audit": ["true", "true", "false"],
        "prompt": ["Why?", "Why?", "How?"],
    }
    assert compared({"a": traces["a"], "again": traces["a"]})["settings"] == []


def test_figures_and_curves_are_those_of_the_traces(traces):
    found = compared(traces)
    assert [one["id"] for one in found["runs"]] == ["a", "b", "c"]
    for at, trace in enumerate(traces.values()):
        assert found["runs"][at]["figures"]["speedup"] == trace.summary.speedup
        clock, drift = (found["curves"][name][at] for name in ("clock", "drift"))
        assert clock[-1] == pytest.approx(trace.summary.lanes[LORA_DROP]["decode_ms"], abs=0.1)
        assert len(clock) == len(drift) == 9
        audits = trace.audits[LORA_DROP]
        for step, mean in enumerate(drift, start=1):
            known = audits[step].drift if step in audits else None
            assert mean == (None if known is None else pytest.approx(sum(known) / len(known), abs=1e-4))


def test_time_for_what_was_taken_back_counts(tiny):
    trace = taken_back(tiny)
    assert any(isinstance(one, RewindRecord) for one in trace.passes[LORA_DROP])
    clock = compared({"x": trace})["curves"]["clock"][0]
    assert len(clock) == len(trace.steps[LORA_DROP]) - 1 and clock == sorted(clock)
    assert clock[-1] == pytest.approx(trace.summary.lanes[LORA_DROP]["decode_ms"], abs=0.1)


def test_a_cut_trace_has_no_figures_and_its_curves(traces):
    cut = Trace(traces["a"].header)
    for step in traces["a"].steps[LORA_DROP][:4]:
        cut.add(step)
    found = compared({"cut": cut, "empty": Trace(traces["a"].header)})
    assert found["runs"][0]["figures"]["speedup"] is None and found["runs"][0]["verdict"] is None
    assert [len(one) for one in found["curves"]["clock"]] == [3, 0]
