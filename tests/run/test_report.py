"""The report of a run: figures of runs made by hand, to the last digit, and of real ones as the summary has them."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from lora_drop.method.cost import Corrections, step_bytes
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.run.report.report import Report, schedule_of
from lora_drop.run.report.speed import BY_CHANCE
from lora_drop.run.report.verdict import verdict
from lora_drop.run.summary import summarise
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD, TOGETHER, JudgeRecord
from lora_drop.run.wire import FIGURES, figures_line
from tests.support.made import REPAIR, SHAPE, X, audit, gathered, header, rejecting, step, steps, summary

TIMES = {"p": 20.0, "l": 4.0, "r": 12.0}


def report_of(*records) -> Report:
    header, *others = records
    return Report.of(gathered(header, *others))


def test_drafts_and_times_of_a_lane_that_rejects():
    lane = report_of(*rejecting()).lanes[LORA_DROP]
    assert (lane.drafts, lane.accepted, lane.acceptance) == (6, 5, 5 / 6)
    assert (lane.standing, lane.decode_ms) == (7, 57.0)
    times = ([one.ms for one in steps] for steps in (lane.lora, lane.rejected, lane.full))
    assert tuple(times) == ([4.0, 4.0, 5.0, 4.0, 4.0], [5.0], [12.0, 13.0, 6.0])
    assert lane.ms_per_token == 57 / 7 and lane.tokens_per_second == pytest.approx(7000 / 57)
    assert lane.cycles == [(3, 20.0), (2, 23.0), (2, 14.0)]
    assert lane.refresh_counts == {"refreshes": 2, "average_period": 3.5}
    # Layers that ran: 2 at each of six LoRA steps, 4 at two full ones, 3 from the first skipped one on at the end.
    assert lane.skipped_share == pytest.approx(1 - (12 + 8 + 3) / 28) and lane.layer_runs == 23 / 7
    # Rows: 2 at a LoRA step; at a full one 1 in the layer below, and 3 or 2 in three layers; 2 in three at the end.
    assert lane.layer_rows == (6 * 2 + (1 + 3 * 3) + (1 + 3 * 2) + 3 * 2) / 7
    last = JudgeRecord(LORA_DROP, 2, 6.0, 1)
    half = report_of(header(REPAIR), *steps(LORA_DROP, "pll", TIMES), last).lanes[LORA_DROP]
    assert (half.drafts, half.accepted) == (2, 1)


def test_a_lane_beside_the_baseline():
    report = report_of(*rejecting())
    base = report.lanes[BASELINE]
    assert report.has_baseline and (base.standing, base.decode_ms, base.ms_per_token) == (8, 80.0, 10.0)
    assert base.acceptance is None and base.skipped_share == 0.0 and base.bound == 1.0
    assert base.layer_runs == base.layer_rows == 4
    assert report.speedup(LORA_DROP) == pytest.approx((7 / 57) / (7 / 70)), "both up to seven tokens"
    assert report.kv_saved(LORA_DROP) == pytest.approx(1 - 60 / 100)
    assert report.first_difference(LORA_DROP) == 5
    for nothing in (report.speedup, report.kv_saved, report.first_difference, report.speedup_interval):
        assert nothing(BASELINE) is None
    assert report.speedup_interval(LORA_DROP) is None, "of three cycles"


def test_the_speedup_ends_with_the_cycle_that_reaches_the_shorter_lane():
    def speedup(kinds, tokens):
        base = steps(BASELINE, "p" + "r" * tokens, TIMES | {"r": 10.0})
        return report_of(header(), *base, *steps(LORA_DROP, kinds, TIMES)).speedup(LORA_DROP)

    assert speedup("pllrr", 4) == pytest.approx((4 / 32) / (4 / 40))
    assert speedup("pllrr", 3) == pytest.approx((3 / 20) / (3 / 30)), "the second cycle is beyond"
    assert speedup("prllr", 2) == pytest.approx((4 / 32) / (2 / 20)), "whole cycles of either lane"
    assert speedup("pllrl", 9) == pytest.approx((4 / 24) / (4 / 40)), "the last one as far as it came"
    assert speedup("p", 3) is None and speedup("pllr", 0) is None


def test_the_interval_is_that_of_the_cycles():
    base = steps(BASELINE, "p" + "r" * 8, TIMES | {"r": 10.0})
    report = report_of(header(), *base, *steps(LORA_DROP, "pllrllrllrllr", TIMES))
    assert report.speedup_interval(LORA_DROP) == [1.5, 1.5]
    assert report.lanes[LORA_DROP].cycles == [(3, 20.0)] * 4


def test_the_reference_decoder_has_no_speedup():
    records = rejecting()
    slow = dataclasses.replace(records[0], device={"name": "a CPU", "decoder": "reference"})
    report = report_of(slow, *records[1:])
    assert report.speedup(LORA_DROP) is report.speedup_interval(LORA_DROP) is None
    assert report.kv_saved(LORA_DROP) and report.lanes[LORA_DROP].tokens_per_second


def test_the_bound_is_of_all_passes():
    """Those for rejected tokens and the last verification count, beside the baseline's for the tokens that stand."""
    config = dict(rejecting()[0].main["config"])
    schedule = schedule_of(rejecting()[0], config)
    assert schedule == Schedule(3, 4, (1, 2), "residual", "block", "write", refresh="repair", accept=0.5)

    def read(number, lora, refreshes, last):
        past = {"refreshes": refreshes, "last_refresh": last}
        return step_bytes(SHAPE, schedule, number, 5, 1, Corrections(2), lora=lora, **past)

    own = sum(read(number, True, 0, 0) for number in (1, 2)) + read(3, False, 1, 3)
    own += sum(read(number, True, 1, 3) for number in (4, 5)) + read(5, False, 2, 5)
    own += sum(read(number, True, 2, 5) for number in (6, 7)) + read(7, False, 2, 5)
    full = sum(step_bytes(SHAPE, baseline_schedule(4), number, 5, 1) for number in range(1, 8))
    assert report_of(*rejecting()).lanes[LORA_DROP].bound == pytest.approx(full / own)
    report = Report(rejecting()[0])
    bounds = []
    for record in rejecting()[1:]:
        report.add(record)
        bounds.append(report.lanes[LORA_DROP].bound)
    assert bounds[-1] == pytest.approx(full / own), "asked after each record too"


def test_the_loss_is_the_regret_of_the_lane_s_own_text():
    loss = report_of(*rejecting()).lanes[LORA_DROP].loss
    assert loss == (0.0 + 0.25 + 0.0 + 0.5 + 1.25) / 5, "with the prefill's token, without the rejected one"
    sampled = dataclasses.replace(rejecting()[0], sampling={"temperature": 0.7})
    assert report_of(sampled, *rejecting()[1:]).lanes[LORA_DROP].loss is None
    plain = [header(), *steps(BASELINE, "prrr", TIMES), *steps(LORA_DROP, "pllr", TIMES)]
    quality = [audit(0, kind="prefill", kl=0.0), audit(1, kind="lora", kl=0.3)]
    assert report_of(*plain, *quality, audit(1, regret=5.0), audit(2)).lanes[LORA_DROP].loss == 2.5
    assert report_of(*plain).lanes[LORA_DROP].loss is None


def test_quality_is_by_kind_of_step():
    def heard(number, kind, kl, agrees):
        return audit(number, kind=kind, kl=kl, agrees=agrees, nll_gap=2 * kl)

    plain = [header(), *steps(BASELINE, "prrr", TIMES), *steps(LORA_DROP, "pllr", TIMES)]
    assert report_of(*plain).lanes[LORA_DROP].quality.to_dict() is None
    audits = [heard(0, "prefill", 0.0, True), heard(1, "lora", 0.3, True), heard(2, "lora", 0.5, False)]
    quality = report_of(*plain, *audits, heard(3, "refresh", 0.2, False)).lanes[LORA_DROP].quality
    assert quality.to_dict() == {
        "lora_steps": {"count": 2, "kl": 0.4, "nll_gap": 0.8, "top1_agreement": 0.5},
        "full_steps": {"count": 1, "kl": 0.2, "nll_gap": 0.4, "top1_agreement": 0.0},
        "all_steps": {"count": 4, "kl": 0.25, "nll_gap": 0.5, "top1_agreement": 0.5},
    }
    assert quality.mean("lora_steps", "kl") == 0.4


def test_a_loop_is_that_of_the_text_without_its_stop_token():
    loop = [step(LORA_DROP, number, "refresh", 1.0, token_id=7) for number in range(1, 40)]
    stop = step(LORA_DROP, 40, "refresh", 1.0, token_id=2)
    lane = report_of(header(), step(LORA_DROP, 0, "prefill", 1.0), *loop, stop).lanes[LORA_DROP]
    assert lane.loop_at("stop") == 1 and lane.loop_at("length") is None


def test_figures_while_the_run_goes_on():
    """The first difference moves back with what is rejected."""
    report = Report(rejecting()[0])
    empty = report.figures()
    assert empty["main"] == LORA_DROP and set(empty["lanes"]) == {BASELINE, LORA_DROP}
    assert all(empty[name] is None for name in (*TOGETHER, "accepted", "quality_loss")) and not empty["by_chance"]
    differs = []
    for record in rejecting()[1:]:
        report.add(record)
        differs.append(report.figures()["lanes"][LORA_DROP]["differs"])
    assert differs == [None] * 14 + [5] * 3 + [None] + [5] * 7
    assert report.figures() == Report.of(report.trace).figures()
    assert json.loads(figures_line(report)) == [
        *(FIGURES, round(70 / 57, 4), round(report.lanes[LORA_DROP].bound, 4), 0.4, 5, None, 0.4, round(5 / 6, 4), 0),
        [[100.0, None], [round(7000 / 57, 2), 5]],
    ]


def test_figures_of_the_end_are_the_summary_s():
    values = {"speedup": 2.0, "bound": 1.5, "kv_saved": 0.1, "first_divergence": 3, "top1_agreement": 0.9}
    for speedup, by_chance in ((2.0, True), (1.5 * BY_CHANCE, False), (None, False)):
        ended = summary(**values | {"speedup": speedup}, accepted=0.7)
        figures = report_of(*rejecting(), ended).figures()
        assert {name: figures[name] for name in TOGETHER} == values | {"speedup": speedup}
        assert (figures["accepted"], figures["by_chance"], figures["quality_loss"]) == (0.7, by_chance, 0.4)
        assert {lane["tokens_per_second"] for lane in figures["lanes"].values()} == {100.0}
    nothing_skipped = report_of(header({"period": 1}), summary(**values)).figures()
    assert nothing_skipped["bound"] == 1.0


def test_without_a_baseline_the_first_lane_is_in_its_place():
    lanes = [lane for lane in header(third={}).lanes if lane["id"] != BASELINE]
    records = [*steps(LORA_DROP, "pll", TIMES), *steps(THIRD, "pl", TIMES), step(THIRD, 2, "lora", 2.0, **X)]
    report = report_of(dataclasses.replace(header(), lanes=lanes), *records)
    assert not report.has_baseline and report.speedup(LORA_DROP) is None
    assert report.first_difference(THIRD) == 2 and report.speedup(THIRD) == pytest.approx(8 / 6)
    turned = dataclasses.replace(header(), lanes=header().lanes[::-1])
    report = report_of(turned, *steps(BASELINE, "prr", TIMES), *steps(LORA_DROP, "pll", TIMES))
    assert report.has_baseline and report.speedup(LORA_DROP) == pytest.approx(3.0), "wherever the baseline is"


def test_old_headers_count_what_they_can():
    """Without a shape there is no bound; without a decoder there are claims; without `dropped` nothing is skipped."""
    bare = header({"drop_layers": None})
    del bare.model["shape"], bare.device["decoder"]
    lane = report_of(bare, *rejecting()[1:]).lanes[LORA_DROP]
    assert lane.bound is None and lane.acceptance is None
    config = {"period": 3}
    assert schedule_of(bare, config) == Schedule(3, 4, ())


def test_the_summary_has_the_figures_of_the_report():
    def summarised(header, *records, ended="length"):
        report = Report(header)
        for record in records:
            report.add(record)
        cache = SimpleNamespace(allocated_bytes=900)
        lane = SimpleNamespace(ended=ended, prefill_ms=20.0, kv_bytes=800, state=SimpleNamespace(kv=cache))
        return report, summarise(report, dict.fromkeys(report.lanes, lane))

    report, end = summarised(*rejecting())
    assert (end.speedup, end.bound) == (round(70 / 57, 4), round(report.lanes[LORA_DROP].bound, 4))
    assert (end.kv_saved, end.first_divergence, end.accepted, end.tokens_per_refresh) == (0.4, 5, 0.833333, 3.5)
    assert end.verdict == verdict(report) and end.quality is None
    own = end.lanes[LORA_DROP]
    assert (own["tokens"], own["tokens_per_second"], own["decode_ms"]) == (8, round(7000 / 57, 3), 57.0)
    assert (own["refreshes"], own["average_period"], own["ended"], own["collapsed"]) == (2, 3.5, "length", None)
    assert "speedup" not in own, "a third lane alone has its own comparison"
    bare = header(third={})
    del bare.model["shape"]
    _, end = summarised(bare, *steps(BASELINE, "pr", TIMES), *steps(THIRD, "pl", TIMES), ended=None)
    third = end.lanes[THIRD]
    assert third["speedup"] == 3.0 and third["bound"] == end.bound == 1.0, "without a shape"
    assert end.speedup is end.tokens_per_refresh is None and third["ended"] == "stopped"
