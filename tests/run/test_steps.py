"""What a trace says of single steps, of runs made by hand."""

import json

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.run.report.steps import inside
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD, JudgeRecord, RewindRecord
from tests.support.golden import check_golden
from tests.support.made import REPAIR, X, gathered, header, rejecting, step, steps
from tests.support.runs import about_step

TIMES = {"p": 20.0, "l": 4.0, "r": 12.0}
BASE = steps(BASELINE, "prrrrr", TIMES)
OWN = steps(LORA_DROP, "pllrll", TIMES)
TOP = [["a", 0.5], ["b", 0.25]]


def test_the_prefix_is_that_of_the_lanes_up_to_the_step():
    """LoRA-Drop's third token is another one; a third lane has the baseline's, and ends before."""
    own = [*OWN[:2], step(LORA_DROP, 2, "lora", 4.0, top=TOP, **X), *OWN[3:]]
    trace = gathered(header(third={}), *BASE, *own, *steps(THIRD, "pll", TIMES))
    at, later = about_step(trace, LORA_DROP, 2), about_step(trace, LORA_DROP, 3)
    assert at["prefix_of"] == [LORA_DROP, BASELINE, THIRD] and later["prefix_of"] == [LORA_DROP]
    assert (at["lane"], at["step"], at["kind"], at["text"]) == (LORA_DROP, 2, "lora", "x ")
    assert at["top"][LORA_DROP] == {"prefix_of": at["prefix_of"], "text": "x ", "tokens": TOP}
    assert at["top"][BASELINE] == {"prefix_of": [BASELINE, LORA_DROP, THIRD], "text": "c ", "tokens": None}
    assert set(later["top"]) == {BASELINE, LORA_DROP}, "the lanes that have the step"
    assert about_step(trace, BASELINE, 3)["prefix_of"] == [BASELINE, THIRD], "as far as a lane went"


RUNS = {
    "single": gathered(header(), *BASE, *OWN),
    "single, K/V written": gathered(header({"kv": "write"}), *BASE, *OWN),
    "attention": gathered(header({"part": "attention"}), *BASE, *OWN),
    "repair": gathered(header(REPAIR), *BASE, *OWN),
    "rejecting": gathered(*rejecting()),
    "nothing skipped": gathered(header({"period": 1}), *steps(LORA_DROP, "prr", TIMES)),
    "early": gathered(
        header(REPAIR),
        *(*OWN[:2], step(LORA_DROP, 2, "refresh", 12.0, trigger="entropy", rows=2)),
        *(step(LORA_DROP, 3, "lora", 4.0), JudgeRecord(LORA_DROP, 1, 5.0, 1)),
    ),
}


def test_what_each_step_did():
    check_golden("steps", {name: rows(trace) for name, trace in RUNS.items()})


def rows(trace):
    """A line for each step."""
    names, lines = ("step", "rows", "repaired", "taken_back", "trigger", "text"), []
    for number in range(len(trace.steps[LORA_DROP])):
        about = about_step(trace, LORA_DROP, number)
        refresh = [f"{name} {(about['refresh'] or {}).get(name)!r}" for name in names]
        lines.append("; ".join([about["prefix_text"], "/".join(layer["did"] for layer in about["layers"]), *refresh]))
    return lines


@pytest.mark.parametrize(
    ("lane", "number", "says"),
    [
        *(("x", 1, "its lanes are baseline, lora_drop"), (["x"], 1, "no lane")),
        *((LORA_DROP, number, "its steps are 0 to 5") for number in (6, -1, True, "1")),
    ],
)
def test_a_lane_or_step_that_is_missing_is_one_clear_line(lane, number, says):
    with pytest.raises(LoraDropError, match=says):
        about_step(RUNS["single"], lane, number)
    with pytest.raises(LoraDropError, match="lane lora_drop has no step 0: it has none"):
        about_step(gathered(header()), LORA_DROP, 0)


def test_a_page_without_a_server_has_the_same():
    """Put together again it is `about_step` of each step."""
    trace = RUNS["rejecting"]
    lines = inside(trace)
    assert lines["type"] == "inside" and list(lines["lanes"]) == [BASELINE, LORA_DROP]
    for lane, own in lines["lanes"].items():
        assert len(own) == len(trace.steps[lane])
        for number, (*places, top) in enumerate(own):
            about = about_step(trace, lane, number)
            did, whose, text, refresh = (lines["words"][place] for place in places)
            assert [{"did": one} for one in did] == about["layers"] and top == about["top"][lane]["tokens"]
            assert (whose, text) == (about["prefix_of"], about["prefix_text"])
            assert refresh == (about["refresh"] and about["refresh"]["text"])
    assert len({json.dumps(one) for one in lines["words"]}) == len(lines["words"]), "each value once"


def test_a_second_rejection_has_its_own_text():
    lane = [
        *(step(LORA_DROP, 0, "prefill", 20.0), step(LORA_DROP, 1, "lora", 4.0, text="a")),
        *(step(LORA_DROP, 2, "lora", 4.0, text="b"), RewindRecord(LORA_DROP, 1)),
        *(step(LORA_DROP, 2, "refresh", 12.0, text="c"), step(LORA_DROP, 3, "lora", 4.0, text="d")),
        *(step(LORA_DROP, 4, "lora", 4.0, text="e"), RewindRecord(LORA_DROP, 2)),
        step(LORA_DROP, 3, "refresh", 12.0, text="f"),
    ]
    trace = gathered(header({"refresh": "repair", "kv": "write", "accept": 0.5}), *lane)
    texts = [about_step(trace, LORA_DROP, at)["refresh"]["taken_back"] for at in (2, 3)]
    assert texts == ["b", "de"]
