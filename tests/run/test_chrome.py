"""The Chrome trace: what a viewer relies on, on real runs and on records made by hand."""

import dataclasses
import itertools
import json
from collections import defaultdict

import jsonschema
import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.exports.chrome import LONGEST_MS, chrome_trace
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import Trace, gather
from tests.support.made import gathered, header, rejecting, step, steps

# The rules of Google's "Trace Event Format", for the phases that are written here.
WORDS, WHOLE, OBJECT = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
TIMED = {"name": WORDS, "pid": WHOLE, "tid": WHOLE, "ts": WHOLE, "args": OBJECT}  # ts and dur in microseconds
PHASES = {
    "X": TIMED | {"cat": WORDS, "dur": WHOLE},  # complete
    "C": TIMED | {"args": OBJECT | {"additionalProperties": {"type": "number"}, "minProperties": 1}},  # counter
    "i": TIMED | {"cat": WORDS, "s": {"enum": ["g", "p", "t"]}},  # instant, with its scope
    "M": {"name": {"enum": ["process_name", "thread_name", "thread_sort_index"]}, "pid": WHOLE, "tid": WHOLE}
    | {"args": OBJECT | {"minProperties": 1, "properties": {"name": WORDS, "sort_index": WHOLE}}},  # metadata
}
EVENTS = [
    OBJECT | {"properties": {"ph": {"const": phase}, **rules}, "required": ["ph", *rules]}
    for phase, rules in PHASES.items()
]
FORMAT = {
    **OBJECT,
    "properties": {
        "traceEvents": {"type": "array", "items": {"oneOf": EVENTS}},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": OBJECT,
    },
    "required": ["traceEvents"],
}

TIMES = {"p": 20.0, "l": 4.0, "r": 12.0}
CONFIG = LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0)


@pytest.fixture(scope="module")
def trace(tiny) -> Trace:
    return gather(run(tiny, Request("Why?", CONFIG, 40, ignore_eos=True, compare="skip")))


def by_phase(trace: Trace, phase: str) -> dict[int, list[dict]]:
    """Events of a phase by thread; they went through JSON, as a viewer gets them."""
    found = defaultdict(list)
    for event in json.loads(json.dumps(chrome_trace(trace), allow_nan=False))["traceEvents"]:
        if event["ph"] == phase:
            found[event["tid"]].append(event)
    return found


def test_the_format_s_published_rules_hold(trace):
    early = step("lora_drop", 2, "refresh", 12.0, trigger="entropy")
    for one in (trace, gathered(*rejecting()), gathered(header(), *steps("lora_drop", "pl", TIMES), early)):
        jsonschema.validate(json.loads(json.dumps(chrome_trace(one))), FORMAT)
        for events in by_phase(one, "X").values():  # a thread's slices nest or do not touch
            assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in itertools.pairwise(events))
    marks = by_phase(trace, "i")
    broken = chrome_trace(trace) | {
        "traceEvents": [event | {"ts": -1} for events in marks.values() for event in events]
    }
    assert not jsonschema.Draft202012Validator(FORMAT).is_valid(broken)


def test_events_are_of_one_process_and_in_order_of_time(trace):
    written = chrome_trace(trace)
    events = written["traceEvents"]
    assert written["displayTimeUnit"] == "ms" and "own clock" in written["otherData"]["clocks"]
    assert {event["pid"] for event in events} == {1}
    metadata = [event["ph"] == "M" for event in events]
    assert metadata == sorted(metadata, reverse=True)  # names come before what they name
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times) and all(type(time) is int for time in times)


def test_a_thread_is_a_lane_by_its_label(trace):
    names = {e["tid"]: e["args"]["name"] for e in chrome_trace(trace)["traceEvents"] if e["name"] == "thread_name"}
    assert names == {i: lane["label"] for i, lane in enumerate(trace.header.lanes, start=1)} and len(names) == 3


def test_steps_touch_and_add_up_to_the_lanes_clock(trace):
    for thread, events in by_phase(trace, "X").items():
        lane = trace.header.lanes[thread - 1]["id"]
        assert events[0]["ts"] == 0 and events[0]["name"] == "prefill"
        for one, next_one in itertools.pairwise(events):
            assert one["ts"] + one["dur"] == next_one["ts"]
        total = sum(event["dur"] for event in events) / 1000
        assert total == pytest.approx(sum(step.ms for step in trace.steps[lane]), abs=0.001)


def test_a_step_says_what_the_trace_says(trace):
    for thread, events in by_phase(trace, "X").items():
        lane = trace.header.lanes[thread - 1]["id"]
        assert [event["name"] for event in events] == [step.kind for step in trace.steps[lane]]
        for event, one in zip(events, trace.steps[lane], strict=True):
            args = event["args"]
            assert (args["token_id"], args["step"], args["entropy"]) == (one.token_id, one.step, one.entropy)
            assert args["kv_bytes"] == one.kv_bytes and args["layers_run"] == sum(one.active)
            audit = trace.audits[lane].get(one.step)
            assert ("kl" in args) == ("agrees" in args) == (audit is not None)
            if audit:
                assert (args["kl"], args["agrees"]) == (audit.kl, audit.agrees)
    assert trace.audits["lora_drop"] and trace.audits["third"]


def test_each_lane_has_a_counter_of_its_kv_bytes(trace):
    counters = by_phase(trace, "C")
    assert len({event["name"] for events in counters.values() for event in events}) == 3
    for thread, events in counters.items():
        lane = trace.header.lanes[thread - 1]["id"]
        assert [event["args"]["bytes"] for event in events] == [step.kv_bytes for step in trace.steps[lane]]


def test_the_first_difference_is_marked_in_the_step_that_wrote_it(trace):
    steps = by_phase(trace, "X")
    marks = by_phase(trace, "i")
    assert set(marks) == {2, 3}
    for thread, first in ((2, trace.summary.first_divergence), (3, trace.summary.lanes["third"]["first_divergence"])):
        (mark,) = marks[thread]
        assert mark["args"]["step"] == first and mark["s"] == "t" and mark["ts"] == steps[thread][first]["ts"]


def test_early_refreshes_are_marked():
    early = step("lora_drop", 2, "refresh", 12.0, trigger="entropy")
    trace = gathered(header(), *steps("lora_drop", "pl", TIMES), early)
    marks = [event for event in by_phase(trace, "i")[2] if event["name"] == "early refresh (entropy)"]
    assert [mark["args"]["step"] for mark in marks] == [2]


def test_passes_for_what_was_taken_back_are_in_the_lanes_time():
    trace = gathered(*rejecting())
    events = by_phase(trace, "X")[2]
    assert sum(event["dur"] for event in events) == 77_000
    passes = [one for one in trace.passes["lora_drop"] if one.type != "rewind"]
    assert len(events) == len(passes) > len(trace.steps["lora_drop"])
    for event, one in zip(events, passes, strict=True):
        if one.type == "judge":
            assert (event["name"], event["args"]) == ("judge", {"rows": one.rows, "kept": one.kept})
            continue
        stands = any(one is step for step in trace.steps["lora_drop"])
        assert event["name"] == (one.kind if stands else f"{one.kind}, taken back")
        assert event["args"].get("rows", 1) == one.rows and ("kl" in event["args"]) <= stands
    back = [mark["args"]["back_to_step"] for mark in by_phase(trace, "i")[2] if mark["name"] == "tokens taken back"]
    assert back == [one.to for one in trace.passes["lora_drop"] if one.type == "rewind"] and back


def test_a_cut_trace_and_a_single_lane():
    alone = gathered(dataclasses.replace(header(), lanes=header().lanes[1:]), *steps("lora_drop", "pl", TIMES))
    assert chrome_trace(alone)["otherData"]["complete"] is False
    assert not by_phase(alone, "i") and [len(events) for events in by_phase(alone, "X").values()] == [2]


def test_half_a_character_and_unknown_numbers_are_written_as_json_has_them():
    hostile = gathered(header(), step("baseline", 0, "prefill", 1.0, text="\ud83d</script>\u2028\x00"))
    text = json.dumps(chrome_trace(hostile), allow_nan=False)
    text.encode("utf-8")
    (event,) = by_phase(hostile, "X")[1]
    assert event["args"]["token"] == "\ufffd</script>\u2028\x00" and event["args"]["entropy"] is None
    assert "\\ud83d" not in text  # Perfetto's reader refuses the whole file for one


@pytest.mark.parametrize("ms", [-1.0, 2 * LONGEST_MS, 1e308])
def test_a_duration_that_no_clock_shows_is_refused(ms):
    with pytest.raises(LoraDropError, match="step 0 of lane baseline"):
        chrome_trace(gathered(header(), step("baseline", 0, "prefill", ms)))
