"""The line under each chart and the parts of the time, of runs made by hand."""

import dataclasses

import pytest

from lora_drop.method.cost import Corrections, step_bytes
from lora_drop.method.schedule import baseline_schedule
from lora_drop.run.report.parts import parts_of
from lora_drop.run.report.report import Report
from lora_drop.run.report.why import CHARTS, why
from lora_drop.run.trace.records import BASELINE, LORA_DROP, RewindRecord
from tests.support.golden import check_golden
from tests.support.made import REPAIR, SHAPE, X, audit, gathered, header, rejecting, step, steps, summary

TIMES = {"p": 20.0, "l": 4.0, "r": 12.0}
BASE = steps(BASELINE, "prrrrrr", {"p": 20.0, "r": 10.0})
OWN = steps(LORA_DROP, "pllrllr", TIMES)
# Drift by step: it grows to .2 and .4 at the last LoRA steps, and refreshes leave .1 and .02.
DRIFTS = {1: [0.1, 0.1], 2: [0.1, 0.3], 3: [0.1, 0.1], 4: [0.2, 0.4], 5: [0.3, 0.5], 6: [0.02, 0.02]}
AUDITS = [audit(number, drift=drift) for number, drift in DRIFTS.items()]
QUALITY = [
    audit(number, kind=kind, kl=kl, agrees=agrees)
    for number, kind, kl, agrees in ((1, "lora", 0.25, True), (2, "lora", 0.5, False), (3, "refresh", 9.0, False))
]
EARLY = [*OWN[:2], dataclasses.replace(OWN[2], kind="refresh", active=[1, 1, 1, 1], trigger="entropy"), *OWN[3:]]
HEAD = {"head": "screened", "extras": {"head_rank": 2, "head_best": 4}}


def report_of(*records) -> Report:
    return Report.of(gathered(*records))


RUNS = {
    "a run": [header(), *BASE, *OWN, *AUDITS, *QUALITY],
    "rejected drafts": rejecting(),
    "repaired, screened": [header(REPAIR | HEAD), *BASE, *OWN, *(audit(n, drift=[0.3, 0.1]) for n in (1, 2))]
    + [audit(3, drift=[0.0, 0.0])],
    "K/V written": [header({"kv": "write"}), *BASE, *OWN],
    "the head alone": [header({"dropped": [], "period": 3, **HEAD}), *BASE, *OWN],
    "early": [header(), *BASE, *EARLY],
    "alone": [dataclasses.replace(header(), lanes=header().lanes[1:]), *OWN],
    "the reference decoder": [header(device={"name": "a CPU", "decoder": "reference"}), *BASE, *OWN],
    "cached": [header(), *BASE, *OWN, summary(prefill_cached=True)],
    "slower": [header(), *BASE[:2], *steps(LORA_DROP, "pl", {"p": 20.0, "l": 12.5})],
    "long": [header(), *BASE[:3], *steps(LORA_DROP, "plr", {"p": 2000.0, "l": 1500.0, "r": 250.0})],
    "other words": [header(), *BASE[:3], *OWN[:2], dataclasses.replace(OWN[2], **X)],
    "fewer words": [header(), *BASE[:3], *OWN[:2]],
    "more words": [header(), *BASE[:2], *OWN[:3]],
    "cut before the baseline": [header(), *OWN],
    "cut at once": [header(), *BASE, OWN[0]],
}


def test_the_sentence_under_each_chart():
    written = {}
    for name, records in RUNS.items():
        report = report_of(*records)
        written[name] = why(report, parts_of(report, 2.0))
        assert tuple(written[name]) == CHARTS
    check_golden("why", {name: {k: v for k, v in lines.items() if v} for name, lines in written.items()})


def test_the_usual_gap_is_the_most_frequent():
    kinds = "pllrlrlr"
    drifts = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.2, 5: 0.1, 6: 0.4, 7: 0.2}
    audits = [audit(number, drift=[drift, drift]) for number, drift in drifts.items()]
    line = why(report_of(header(), *steps(LORA_DROP, kinds, TIMES), *audits), None)["drift"]
    assert "0.30 in 1 LoRA step" in line and "to 0.15" in line


def parts(rules, *records, bound=None):
    found = parts_of(report_of(header(rules), *records), bound)
    return found, {part["id"]: part["ms"] for part in found["parts"]}


def test_the_parts_add_up():
    """A full step takes 10 ms. Of six tokens four are from LoRA steps of 4 ms, two from full ones of 12 ms."""
    found, own = parts({}, *BASE, *OWN, bound=2.0)
    assert own == {"full": 10.0, "layers": round(4 * (4 - 10) / 6, 4), "refreshes": round(2 * (12 - 10) / 6, 4)}
    assert found["total"] == round(40 / 6, 4) == pytest.approx(sum(own.values()), abs=1e-3)
    assert (found["bound"], found["bound_with_repairs"]) == (5.0, None)
    found, own = parts(REPAIR | {"accept": 0}, *BASE, *OWN, bound=2.0)
    assert found["bound_with_repairs"] == round(5 + 4 / 6, 4) and "taken_back" not in own
    assert parts({"refresh": "repair"}, *BASE, *OWN)[0]["bound_with_repairs"] is None, "without a bound"
    cheap = steps(LORA_DROP, "pllr", {"p": 1.0, "l": 4.0, "r": 7.0})
    assert parts({"refresh": "repair"}, *BASE, *cheap, bound=2.0)[0]["bound_with_repairs"] == 5.0


def test_full_steps_are_named_by_what_they_do():
    labels = {
        refresh: {part["id"]: part["label"] for part in parts({"refresh": refresh}, *BASE, *OWN)[0]["parts"]}
        for refresh in ("single", "repair")
    }
    assert (labels["single"]["refreshes"], labels["repair"]["refreshes"]) == ("full steps", "repairs")


def test_rejected_drafts_are_a_part_of_their_own():
    found, own = parts(REPAIR, *rejecting()[1:])
    assert own["taken_back"] == round(5 / 7, 4)
    assert own["layers"] == round((21 - 5 * 10) / 7, 4) and own["refreshes"] == round((31 - 2 * 10) / 7, 4)
    assert found["total"] == round(57 / 7, 4) == pytest.approx(sum(own.values()), abs=1e-3)
    assert parts(REPAIR, *BASE, *OWN)[1]["taken_back"] == 0.0, "with accept there could be some"
    rejected = [*OWN[:3], RewindRecord(LORA_DROP, 1), step(LORA_DROP, 2, "refresh", 12.0)]
    assert parts({}, *BASE, *rejected)[1]["taken_back"] == 2.0, "a file may have some without"


def test_time_outside_the_kernels_is_a_part_where_the_trace_has_it():
    base = steps(BASELINE, "prrrrrr", {"p": 20.0, "r": 10.0}, outside=1.0)
    lora = steps(LORA_DROP, "pllrllr", TIMES, outside=0.5)
    found, own = parts({}, *base, *lora)
    assert found["outside"] == {"own": 0.5, "full": 1.0} and own["outside"] == -0.5
    assert own["layers"] == round(4 * (3.5 - 9) / 6, 4) and own["refreshes"] == round(2 * (11.5 - 9) / 6, 4)
    assert found["total"] == round(40 / 6, 4) == pytest.approx(sum(own.values()), abs=1e-3)
    assert "0.50 ms less outside the kernels" in why(report_of(header(), *base, *lora), found)["parts"]
    found, own = parts({}, *base, *lora[:-1], OWN[-1])
    assert found["outside"] is None and "outside" not in own, "a step does not tell it"


def test_what_layers_and_head_save_is_split_by_their_bytes():
    lane = report_of(header(HEAD), *OWN).lanes[LORA_DROP]
    correction = {"corrections": Corrections(2, **HEAD["extras"]), "lora": True}
    where = SHAPE, lane.schedule, 3, 5, 1
    whole = step_bytes(SHAPE, baseline_schedule(4), 3, 5, 1)
    both = step_bytes(*where, **correction)
    layers = step_bytes(SHAPE, dataclasses.replace(lane.schedule, head="full"), *where[2:], **correction)
    saved = 4 * (4 - 10) / 6
    own = parts(HEAD, *BASE, *OWN)[1]
    assert own["head"] == pytest.approx(saved * (layers - both) / (whole - both), abs=1e-4) != 0
    assert own["head"] + own["layers"] == pytest.approx(saved, abs=1e-3)
    assert parts({"head": "screened"}, *BASE, *OWN)[1]["head"] == 0.0, "of a bank without one"
    assert parts(HEAD | {"rank": 10**4}, *BASE, *OWN)[1]["head"] == 0.0, "LoRA steps save no bytes"
    bare = header(HEAD)
    del bare.model["shape"]
    assert {part["id"]: part["ms"] for part in parts_of(report_of(bare, *BASE, *OWN), None)["parts"]}["head"] == 0.0


def test_there_are_no_parts_without_times_to_compare():
    for name in ("alone", "the reference decoder", "cut before the baseline", "cut at once"):
        assert parts_of(report_of(*RUNS[name]), None) is None, name
    timeless = steps(LORA_DROP, "pll", {"p": 0.0, "l": 0.0})
    assert parts_of(report_of(header(), *BASE, *timeless), None) is None
