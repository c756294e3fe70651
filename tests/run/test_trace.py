"""The trace: what is written reads back, cut or whole, and nothing else is let in."""

import dataclasses
import json

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.run.report.commands import commands_of
from lora_drop.run.trace import trace as t
from lora_drop.run.trace.records import VERSION, RewindRecord, number, write_line
from lora_drop.run.wire import wire_line
from tests.support.made import audit, header, rejecting, step, summary

HOSTILE = "${alert(1)}<img src=x onerror=alert(2)>\u2028\ud800\x00\"'"


def records():
    return [
        header(prompt=HOSTILE, model={"id": "m", "dtype": "float32", "layers": 4}),
        step("baseline", 0, "prefill", 1.25, text=HOSTILE),
        step("lora_drop", 0, "prefill", 1.25),
        step("lora_drop", 1, "lora", 1.25, entropy=0.5),
        audit(1, drift=[0.123456, None], kl=0.25, agrees=False, argmax_text=HOSTILE),
        summary(speedup=1.5),
    ]


def as_bytes(some):
    return "".join(map(write_line, some)).encode()


def test_what_is_written_reads_back():
    read = t.parse_trace(as_bytes(records()))
    assert list(read.records()) == records()
    assert read.text("baseline") == HOSTILE
    assert read.token_ids("lora_drop") == [0, 1]


def test_the_lines_have_the_names_of_the_contract():
    lines = [json.loads(write_line(record)) for record in records()]
    assert lines[0]["format"] == "lora-drop-trace" and lines[0]["version"] == VERSION
    assert {"type", "lanes", "model", "device", "prompt", "prompt_tokens", "seed", "software"} <= set(lines[0])
    assert set(lines[1]) == {
        *("type", "lane", "step", "token_id", "text", "kind", "active", "ms", "kv_bytes", "entropy")
    }
    assert set(lines[4]) == {"type", "lane", "step", "drift", "cosine", "kl", "agrees", "argmax_text"}
    assert {"type", "speedup", "bound", "kv_saved", "first_divergence", "top1_agreement"} <= set(lines[5])
    assert all(line.isascii() for line in map(write_line, records()))


def test_only_an_early_refresh_names_a_trigger():
    early = step("lora_drop", 1, "refresh", 1.25, entropy=0.5, trigger="entropy")
    assert json.loads(write_line(early))["trigger"] == "entropy"
    assert '"trigger"' not in write_line(records()[3])
    before = [header(), step("lora_drop", 0, "prefill", 1.25)]
    assert t.parse_trace(as_bytes([*before, early])).steps["lora_drop"][1] == early
    ids = ["baseline", "lora_drop"]
    assert json.loads(wire_line(early, ids)) == [1, 1, 1, "b ", 1, 1.25, 120, 0.5, "entropy"]
    for other in (dataclasses.replace(early, trigger="mood"), dataclasses.replace(early, kind="lora")):
        with pytest.raises(LoraDropError, match="line 3: a value of this step"):
            t.parse_trace(as_bytes([*before, other]) + b"\n")


def test_a_trace_cut_anywhere_reads():
    raw = as_bytes(records())
    first = raw.index(b"\n") + 1
    whole = list(t.parse_trace(raw).records())
    for cut in range(first, len(raw), 7):
        read = list(t.parse_trace(raw[:cut]).records())
        assert read == [r for r in whole if r in read]
        complete = raw[:cut].count(b"\n")
        assert len(read) in (complete, complete + 1)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"hello", "line 1"),
        (as_bytes([header(), step("third", 0, "prefill", 1.0)]) + b"\n", "no lane 'third'"),
        (as_bytes([header(), step("lora_drop", 5, "lora", 1.0)]), "goes from step -1 to step 5"),
        (as_bytes([header(), RewindRecord("lora_drop", 0)]), "goes back to step 0"),
        (as_bytes([header(), step("lora_drop", 0, "prefill", 1.0, active=[1, 1])]), "2 layers"),
        (as_bytes([header(), audit(3)]), "before it ran"),
        (as_bytes([*records()[:4], dataclasses.replace(audit(1), drift=[], cosine=[])]), "other layers"),
        (as_bytes([header(), summary(lanes=())]), "other lanes"),
        (as_bytes([dataclasses.replace(header(), version=3)]), "version 3 of the format; this .* only version 4"),
        (as_bytes([dataclasses.replace(header(), format="other")]), "another format"),
        (as_bytes([header()]) + b"nonsense\n" + as_bytes(records()[1:]), "line 2"),
    ],
)
def test_what_is_not_a_trace_is_one_clear_line(raw, says):
    with pytest.raises(LoraDropError, match=says) as error:
        t.parse_trace(raw, "run.jsonl")
    assert str(error.value).startswith("run.jsonl") and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(LoraDropError, match="cannot read the trace gone.jsonl"):
        t.read_trace(tmp_path / "gone.jsonl")
    with pytest.raises(LoraDropError, match="cannot read"):
        t.read_trace(tmp_path)
    monkeypatch.setattr(t, "MAX_TRACE_BYTES", 10)
    (tmp_path / "big.jsonl").write_bytes(as_bytes(records()))
    with pytest.raises(LoraDropError, match="larger than"):
        t.read_trace(tmp_path / "big.jsonl")


def test_numbers_that_json_has_no_word_for():
    assert number(float("nan"), 3) is None and number(float("inf"), 3) is None
    assert number(1.23456, 3) == 1.235 and number(None, 3) is None


def test_first_divergence():
    assert t.first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert t.first_divergence([1, 2, 3], [1, 9, 3]) == 1
    assert t.first_divergence([1, 2], [1, 2, 3]) is None
    assert t.first_divergence([], [1]) is None


def test_what_is_taken_back_is_gone_and_its_passes_stay():
    trace = t.gather(rejecting())
    again = t.gather(trace.records())
    assert again.passes == trace.passes and again.steps == trace.steps and again.audits == trace.audits
    kinds = [one.type for one in trace.passes["lora_drop"]]
    assert kinds == [*["step"] * 6, "rewind", *["step"] * 3, "judge"]
    assert len(trace.steps["lora_drop"]) == 8 and trace.audits["lora_drop"][5].regret == 0.0
    trace.add(RewindRecord("lora_drop", 4))
    assert list(trace.audits["lora_drop"]) == [4]


def test_the_wire_says_the_same_in_fewer_bytes():
    lines = [json.loads(wire_line(record, ["baseline", "lora_drop"])) for record in records()]
    assert lines[1] == [0, 0, 0, HOSTILE, 0, 1.25, 100, None]
    assert lines[3] == [1, 1, 1, "b ", 2, 1.25, 120, 0.5]
    assert lines[4] == [101, 1, [1235, None], 0.25, 0, HOSTILE]
    more = {name: lines[0].pop(name) for name in ("main", "commands", "words")}
    assert lines[0] == records()[0].to_file()
    assert more["main"] == "lora_drop" and more["commands"] == commands_of(records()[0]) and more["words"]
