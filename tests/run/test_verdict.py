"""The verdict of real runs of every kind: each number in its sentence, counted anew by other code."""

from __future__ import annotations

import dataclasses
import itertools
import json
from statistics import fmean

import pytest

from lora_drop.cli.main import main
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import COMPARISONS, preset_named, presets_for
from lora_drop.run.exports.html import wire_text
from lora_drop.run.report import verdict as reported
from lora_drop.run.report.report import Report
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.lines import write_line
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD, StepRecord
from lora_drop.run.trace.trace import Trace, gather, parse_trace
from tests.support.faults import fresh
from tests.support.parts import full_bank
from tests.support.retold import Retold, check

EXACT = {"refresh": "repair", "kv": "write"}
WIDE = {"layers": (1, 4), "drop_ratio": 1.0}
OWN_DRIFT = ("drift", LORA_DROP)
BANK = object()  # in a case: the bank with all parts
IDLE = {"preset": "fast", "speedup": 1.234, "device": "a 3-core machine"}
# Name: settings of the schedule, of the run, the kind of the verdict, and words that it has.
CASES = {
    "period 1": ({"period": 1}, {}, "nothing_skipped", "at period 1 every step runs every layer"),
    "no layer": ({"drop_ratio": 0.0}, {}, "nothing_skipped", "no layer is chosen"),
    "one token": (WIDE, {"max_new_tokens": 1}, "nothing_skipped", "every step was a full one"),
    "always early": (WIDE | {"refresh_entropy": 0.0}, {}, "nothing_skipped", "every step was a full one"),
    "head alone": (
        {"drop_ratio": 0.0, "head": "screened", "adapters": BANK},
        {},
        "nothing_skipped",
        "only the head is screened",
    ),
    "lossless": (WIDE | EXACT | {"accept": 1.0}, {}, "lossless", "the full model's, word for word"),
    "lossless, sampled": (WIDE | EXACT | {"accept": 1.0}, {"temperature": 0.9}, "lossless", "word for word"),
    "lossless, third": (
        WIDE | EXACT | {"accept": 1.0, "adapters": BANK},
        {"compare": "bare"},
        "lossless",
        "; without corrections the text ",
    ),
    "skip": (WIDE, {}, None, "of the K/V memory saved"),
    "write": (WIDE | {"kv": "write"}, {}, None, "no memory saved"),
    "attention": (WIDE | {"part": "attention"}, {}, None, "attention runs"),
    "state": (WIDE | {"reuse": "state"}, {}, None, "no trained corrections"),
    "off": (WIDE | {"adapters": "none"}, {}, None, "Corrections are off."),
    "bank": (WIDE | {"adapters": BANK}, {}, None, "layer runs"),
    "bank, bare": (WIDE | EXACT | {"adapters": BANK}, {"compare": "bare"}, None, "without corrections"),
    "bank, rule": (WIDE | EXACT | {"adapters": BANK}, {"compare": "skip"}, None, "in the lane “Skip rule”"),
    "accept": (WIDE | EXACT | {"accept": 0.6, "period": 3}, {}, None, None),
    "accept, bare": (WIDE | EXACT | {"accept": 0.6, "adapters": BANK}, {"compare": "bare"}, None, "without corr"),
    "accept, sampled": (WIDE | EXACT | {"accept": 0.6}, {"temperature": 0.8}, None, "quality was not measured"),
    "sampled": (WIDE, {"temperature": 0.8}, None, "quality loss"),
    "no audit": (WIDE, {"audit": False}, None, None),
    "alone": (WIDE, {"lanes": "lora-drop"}, None, "nothing to compare the answer with"),
    "long period": (WIDE | {"period": 50}, {}, None, None),
    "entropy": (WIDE | {"period": 8, "refresh_entropy": 4.5}, {}, None, None),
    "idle": (WIDE, {"idle": IDLE}, None, None),
    "few": (WIDE, {"max_new_tokens": 6, "idle": IDLE}, None, "too short to tell the speed (measured idle: 1.23x on"),
}


@pytest.fixture(scope="module")
def bank_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "parts"
    full_bank(tiny, "residual", layers=[1, 2, 3, 4]).save(folder)
    return str(folder)


def verdict(trace):
    return reported.verdict(Report.of(trace))


def trace_of(loaded, rules, wanted, folder="", prompt="Tell me something.", stop=lambda: False):
    rules = {name: folder if value is BANK else value for name, value in rules.items()}
    request = Request(prompt, LoraDropConfig(**rules), **{"max_new_tokens": 48, "ignore_eos": True} | wanted)
    return gather(run(loaded, request, stop))


def lines_of(trace):
    return [write_line(record) for record in trace.records()]


@pytest.mark.parametrize("name", CASES)
def test_each_number_of_the_sentence_is_counted_anew(tiny, bank_folder, name):
    rules, wanted, kind, words = CASES[name]
    trace = trace_of(tiny, rules, wanted, bank_folder)
    told = trace.summary.verdict
    lines = lines_of(trace)
    check(told["text"], lines)
    assert told["kind"] == (kind or told["kind"]) and (words or "").lower() in told["text"].lower(), told["text"]
    if kind is None:
        looped = Retold(lines).loop_word(LORA_DROP)
        assert told["kind"] == ("compared" if looped is None else "collapsed")
    assert told == verdict(trace) == verdict(parse_trace("".join(lines).encode())), "a pure function of the file"
    assert told["text"][0] == told["text"][0].upper() and told["text"].endswith(".") and "  " not in told["text"]


def test_a_reference_decoder_makes_no_claim_of_speed():
    trace = trace_of(fresh("reference"), WIDE, {"max_new_tokens": 24})
    told = trace.summary
    assert "the reference decoder makes no claim of speed" in told.verdict["text"].lower()
    assert told.parts is told.why["parts"] is told.why["race"] is None
    check(told.verdict["text"], lines_of(trace))


def test_one_that_was_stopped_says_after_how_many_tokens(tiny):
    count = itertools.count()
    trace = trace_of(tiny, WIDE, {}, stop=lambda: next(count) > 20)
    assert trace.summary.verdict["kind"] == "stopped"
    check(trace.summary.verdict["text"], lines_of(trace))


@pytest.fixture(scope="module")
def judged(tiny, bank_folder):
    rules = WIDE | EXACT | {"accept": 0.6, "adapters": BANK, "head": "screened"}
    return trace_of(tiny, rules, {"compare": "bare"}, bank_folder)


@pytest.fixture(scope="module")
def repaired(tiny, bank_folder):
    rules = WIDE | EXACT | {"adapters": BANK, "head": "screened"}
    return trace_of(tiny, rules, {"compare": "adapters-off"}, bank_folder)


def test_a_file_cut_anywhere_has_one(judged):
    lines = lines_of(judged)
    for end in range(1, len(lines), 37):
        cut = parse_trace("".join([*lines[:end], '{"type": "st']).encode())
        told = reported.conclusions(Report.of(cut))
        assert told["verdict"]["kind"] == "stopped" and "cut short" in told["verdict"]["text"]
        if cut.steps[LORA_DROP] and cut.steps[BASELINE]:
            check(told["verdict"]["text"], lines[:end])
        wire = [json.loads(line) for line in wire_text(cut).splitlines()]
        assert [line for line in wire if isinstance(line, dict) and line["type"] == "cut"] == [{"type": "cut", **told}]


def test_an_old_file_gets_one(repaired):
    """Of the first version: no audits of quality, no regret, few figures of a lane."""
    lines = []
    for line in map(json.loads, lines_of(repaired)):
        if line.get("audit") == "quality":
            continue
        for name in ("regret", "verdict", "why", "parts", "speedup_interval", "quality", "accepted", "rows"):
            line.pop(name, None)
        if line["type"] == "summary":
            for lane in line["lanes"].values():
                for name in ("collapsed", "quality", "speedup_interval"):
                    lane.pop(name, None)
        lines.append(json.dumps(line) + "\n")
    old = parse_trace("".join(lines).encode())
    assert old.summary.verdict is None and '"verdict"' not in write_line(old.summary), "read as it was"
    told = json.loads(wire_text(old).splitlines()[-2])
    assert told["type"] == "summary" and told["verdict"] == verdict(old)
    assert "the quality was not measured" in told["verdict"]["text"]
    check(told["verdict"]["text"], lines)


def retimed(trace: Trace, *times: dict[str, list[float]]) -> Trace:
    """The trace with other times: of each lane those of a full step and of a LoRA step, repeated in turn."""
    new = Trace(trace.header)
    for name, passes in trace.passes.items():
        for one in passes:
            full, lora = times[0][name]
            if isinstance(one, StepRecord) and one.step:
                ms = lora if one.kind == "lora" else full
                one = dataclasses.replace(one, ms=round(ms * times[-1].get("noise", [1.0])[one.step // 4 % 2 - 1], 3))
            new.add(one)
        for audit in trace.audits[name].values():
            new.add(audit)
    for audits in trace.quality.values():
        for audit in audits.values():
            new.add(audit)
    speedup = round(Retold(lines_of(new)).speedup(), 4)
    summary = dataclasses.replace(trace.summary, speedup=speedup, speedup_interval=None)
    return dataclasses.replace(new, summary=summary)


@pytest.mark.parametrize(
    ("full", "lora", "noise", "words"),
    [
        (10.0, 6.0, [1.0], "x faster"),
        (10.0, 4.0, [0.6, 1.2], "faster ("),
        (14.0, 12.0, [1.0], "slower (0."),
        (10.0, 10.0, [1.0], "as fast as the full model (1.00x)"),
        (10.0, 10.0, [0.5, 2.0], "too noisy here to tell the speed (measured idle: 1.23x on a 3-core machine)"),
    ],
)
def test_what_the_interval_says_of_the_speed(tiny, full, lora, noise, words):
    trace = trace_of(tiny, WIDE, {"idle": IDLE})
    made = retimed(trace, {BASELINE: [10.0, 10.0], LORA_DROP: [full, lora]}, {"noise": noise})
    text = verdict(made)["text"]
    assert words.lower() in text.lower(), (text, verdict(made)["facts"])
    check(text, lines_of(made))


def test_a_text_that_goes_in_circles(tiny):
    trace = trace_of(tiny, WIDE, {})
    steps = trace.steps[LORA_DROP]
    for i in range(9, len(steps)):
        steps[i] = dataclasses.replace(steps[i], token_id=5 + i % 2, text=("la ", "le ")[i % 2])
    made = Trace(trace.header)
    for one in [*trace.steps[BASELINE], *steps, *trace.quality[LORA_DROP].values()]:
        made.add(one)
    made.summary = trace.summary
    told = verdict(made)
    assert told["kind"] == "collapsed" and told["text"].startswith("LoRA-Drop's answer goes in circles from word ")
    check(told["text"], lines_of(made))


def test_the_third_lane_is_the_same_skipping_and_nothing_else(judged):
    one, two = (dict(judged.header.config_of(name)) for name in (LORA_DROP, THIRD))
    same = ("period", "layers", "drop_ratio", "dropped", "reuse", "part", "kv", "refresh", "drop_layers")
    assert all(one[name] == two[name] for name in same)
    assert (two["rank"], two["corrected"], two["accept"], two["head"]) == (0, [], 0.0, "full")
    assert not any(two["extras"][name] for name in ("mlp", "kept", "head_rank", "head_best"))
    assert not any(
        one.kind == "lora" and not judged.stands(one) for one in judged.passes[THIRD] if hasattr(one, "kind")
    )
    follow = {"rank", "corrected", "extras", "bank"}
    changed = {name for name in one if name not in follow and one[name] != two[name]}
    assert changed <= set(COMPARISONS["bare"].changes)


def test_the_parts_add_up(judged):
    parts, trace = judged.summary.parts, Retold(lines_of(judged))
    own = {part["id"]: part["ms"] for part in parts["parts"]}
    assert sum(own.values()) == pytest.approx(parts["total"], abs=1e-3)
    assert parts["total"] == pytest.approx(trace.decode_ms(LORA_DROP) / (len(trace.lanes[LORA_DROP]) - 1), abs=1e-3)
    assert own["full"] == pytest.approx(trace.decode_ms(BASELINE) / (len(trace.lanes[BASELINE]) - 1), abs=1e-3)
    stands = {id(step) for step in trace.lanes[LORA_DROP]}
    gone = sum(p["ms"] for p in trace.passes[LORA_DROP] if p.get("kind") == "lora" and id(p) not in stands)
    assert own["taken_back"] == pytest.approx(gone / (len(trace.lanes[LORA_DROP]) - 1), abs=1e-3) and gone > 0
    lora = [step["ms"] for step in trace.lanes[LORA_DROP] if step["kind"] == "lora"]
    saved = (sum(lora) - len(lora) * own["full"]) / (len(trace.lanes[LORA_DROP]) - 1)
    assert own["layers"] + own["head"] == pytest.approx(saved, abs=1e-3)
    assert parts["bound"] == pytest.approx(own["full"] / judged.summary.bound, rel=1e-3)


def test_the_drift_of_the_sentence_is_the_runs(repaired):
    trace = Retold(lines_of(repaired))
    drifts = {step: fmean(one["drift"]) for (kind, of, step), one in trace.audits.items() if (kind, of) == OWN_DRIFT}
    grown = fmean(drifts[step] for step in drifts if step % 4 == 3 and step + 1 in drifts)
    text = f"On average drift grew to {grown:.2f} in 3 LoRA steps, then the refresh brought it to 0: "
    assert repaired.summary.why["drift"] == f"{text}it repaired the caches."
    assert max(drifts[step] for step in drifts if step % 4 == 0) < 0.005


def test_the_command_line_prints_it(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    asked = ["run", "--model", "random:tiny-llama", "--prompt", "Hi", "--max-new-tokens", "12", "--ignore-eos"]
    assert main([*asked, "--trace", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["verdict"]
    check(told["text"], path.read_text().splitlines())
    assert json.loads(path.read_text().splitlines()[-1])["verdict"] == told
    assert main(["replay", str(path)]) == 0
    assert told["text"] in capsys.readouterr().out
    assert main(["replay", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == told


@pytest.mark.full
@pytest.mark.parametrize("prompt", ["Explain why the sky is blue.", "Write a short story about a lighthouse keeper."])
@pytest.mark.parametrize("name", list(presets_for("bundled:x")))
def test_the_presets_on_the_bundled_model(bundled, name, prompt):
    config = preset_named(name, bundled.id).config
    trace = gather(run(bundled, Request(prompt, config, 48, compare="bare")))
    told = trace.summary.verdict
    check(told["text"], lines_of(trace))
    assert told["kind"] in ("compared", "collapsed", "lossless") and (told["kind"] == "lossless") == (
        name == "lossless"
    )
    if told["facts"]["third"]:
        assert "; without corrections the text " in told["text"]
