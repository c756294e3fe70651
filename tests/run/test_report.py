"""The figures that the page shows while a run streams are the summary's once it has ended, and a cut trace's too."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.exports.html import wire_text
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import BY_CHANCE
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD, TOGETHER, StepRecord, Summary
from lora_drop.run.trace.trace import Trace, gather
from lora_drop.run.wire import FIGURES, SO_FAR, figures_line

RULES = [
    {"period": 3},
    {"period": 4, "drop_ratio": 1.0, "kv": "write"},
    {"period": 5, "drop_ratio": 1.0, "part": "attention", "reuse": "state"},
    {"period": 6, "drop_ratio": 1.0, "refresh_entropy": 4.2},
    {"period": 1},
    {"period": 4, "drop_ratio": 1.0, "kv": "write", "refresh": "repair", "accept": 0.9},
]


def so_far(records) -> Report:
    header, *others = records
    report = Report(header)
    for record in others:
        report.add(record)
    return report


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(map(str, rules.values())))
@pytest.mark.parametrize("compare", [None, "skip"])
def test_counted_from_the_records_they_are_the_summary_s(tiny, rules, compare):
    config = LoraDropConfig(layers=(1, 4), **rules)
    wanted = Request("Tell me something.", config, max_new_tokens=24, ignore_eos=True, compare=compare)
    records = list(run(tiny, wanted))
    *before, summary = records
    found = so_far(before).figures()
    assert isinstance(summary, Summary) and found["main"] == LORA_DROP and not found["by_chance"]
    for name in TOGETHER:
        value, theirs = found[name], getattr(summary, name)
        assert value == theirs or value == pytest.approx(theirs, abs=1e-3, rel=1e-2), name
    assert found["accepted"] == pytest.approx(summary.accepted, abs=1e-6)
    assert (found["accepted"] is not None) == ("accept" in rules)
    kept = gather(records).audits[LORA_DROP].values()  # with `accept` it is that of the tokens that stand
    loss = fmean(audit.regret for audit in kept) if "accept" in rules else summary.quality["all_steps"]["kl"]
    assert found["quality_loss"] == pytest.approx(loss)
    for name, lane in found["lanes"].items():
        theirs = summary.lanes[name]["tokens_per_second"]
        assert lane["tokens_per_second"] == pytest.approx(theirs, rel=1e-2)  # of milliseconds with three decimals
    if THIRD in summary.lanes:
        assert found["lanes"][THIRD]["differs"] == summary.lanes[THIRD]["first_divergence"]
    after = so_far(records).figures()
    assert {name: after[name] for name in TOGETHER} == {name: getattr(summary, name) for name in TOGETHER}
    assert {name: after[name] for name in ("quality_loss", "accepted")} == {
        "quality_loss": found["quality_loss"],
        "accepted": summary.accepted,
    }
    assert after["by_chance"] == (summary.speedup > BY_CHANCE * summary.bound)


def test_they_grow_with_the_records(tiny):
    records = list(
        run(tiny, Request("Hi", LoraDropConfig(period=3, layers=(1, 4)), max_new_tokens=8, ignore_eos=True))
    )
    report, steps = Report(records[0]), dict.fromkeys((BASELINE, LORA_DROP), 0)
    assert all(report.figures()[name] is None for name in ("speedup", "bound", "kv_saved", "top1_agreement"))
    for record in records[1:]:
        report.add(record)
        if isinstance(record, StepRecord):
            steps[record.lane] += 1
        mark, *together, by_chance, lanes = json.loads(figures_line(report))
        now = dict(zip(SO_FAR, together, strict=True))
        assert mark == FIGURES and len(lanes) == len(steps)
        # Only a summary can say so: what two lanes of a few milliseconds measure is any figure.
        assert isinstance(record, Summary) or not by_chance
        assert (now["speedup"] is not None) == all(count > 1 for count in steps.values())
        assert (now["kv_saved"] is not None) == all(steps.values())


def test_a_cut_trace_and_one_without_a_shape_have_theirs(tiny):
    whole = gather(
        run(tiny, Request("Hi", LoraDropConfig(period=3, layers=(1, 4)), max_new_tokens=9, ignore_eos=True))
    )
    cut = Trace(whole.header, {name: steps[:5] for name, steps in whole.steps.items()})
    mark, speedup, bound, *_, by_chance, lanes = json.loads(wire_text(cut).splitlines()[-1])
    assert mark == FIGURES and bound > 1 and speedup and not by_chance and all(speed for speed, _ in lanes)
    del whole.header.model["shape"]
    assert json.loads(wire_text(Trace(whole.header, cut.steps)).splitlines()[-1])[2] is None
