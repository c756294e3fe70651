"""The verdict: the facts of real runs of every kind, counted again by other code, and a sentence for each kind."""

import json
from dataclasses import asdict
from itertools import cycle
from typing import Any

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS
from lora_drop.run.exports.html import wire_text
from lora_drop.run.report.facts import Facts, ThirdFacts
from lora_drop.run.report.report import Report
from lora_drop.run.report.verdict import conclusions, facts_of, kind_of, sentence, verdict
from lora_drop.run.request import Request
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD, write_line
from lora_drop.run.trace.trace import gather, parse_trace
from tests.support.faults import fresh
from tests.support.golden import check_golden
from tests.support.made import audit, gathered, header, rejecting, step, steps, summary
from tests.support.parts import full_bank
from tests.support.recount import check, recount

EXACT = {"refresh": "repair", "kv": "write"}
WIDE = {"layers": (1, 4), "drop_ratio": 1.0}
BANK = object()  # in a case: the bank with all parts
QUIET = {"preset": "fast", "speedup": 1.234, "device": "a 3-core machine"}
# Name: settings of the schedule, of the run, the kind of the verdict (None: by the text), and facts that it has.
CASES = {
    "period 1": ({"period": 1}, {}, "nothing_skipped", {"nothing": "period"}),
    "one token": (WIDE, {"max_new_tokens": 1}, "nothing_skipped", {"nothing": "steps"}),
    "head alone": (
        {"drop_ratio": 0.0, "head": "screened", "adapters": BANK},
        *({}, "nothing_skipped", {"nothing": "head", "head": "screened"}),
    ),
    "lossless": (WIDE | EXACT | {"accept": 1.0}, {}, "lossless", {"corrections": "missing"}),
    "lossless, third": (WIDE | EXACT | {"accept": 1.0, "adapters": BANK}, {"compare": "bare"}, "lossless", {}),
    "skip": (WIDE, {}, None, {"loss_of": "own", "part": "block"}),
    "attention": (WIDE | {"part": "attention"}, {}, None, {"part": "attention"}),
    "off": (WIDE | {"adapters": "none"}, {}, None, {"corrections": "off"}),
    "bank, rule": (WIDE | EXACT | {"adapters": BANK}, {"compare": "skip"}, None, {}),
    "accept": (WIDE | EXACT | {"accept": 0.6, "period": 3}, {}, None, {"loss_of": "own", "accept": 0.6}),
    "accept, bare": (WIDE | EXACT | {"accept": 0.6, "adapters": BANK}, {"compare": "bare"}, None, {}),
    "accept, sampled": (WIDE | EXACT | {"accept": 0.6}, {"temperature": 0.8}, None, {"loss_of": None}),
    "no audit": (WIDE, {"audit": False}, None, {"quality_loss": None, "reads": None}),
    "alone": (WIDE, {"lanes": "lora-drop"}, None, {"words": None, "speedup": None, "speed": None, "bound": None}),
    "few": (WIDE, {"max_new_tokens": 6}, None, {"speed": "short", "preset_figures": QUIET}),
}


@pytest.fixture(scope="module")
def bank_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "parts"
    full_bank(tiny, "residual", layers=[1, 2, 3, 4]).save(folder)
    return str(folder)


def trace_of(loaded, rules, wanted, folder="", prompt="Tell me something.", stop=lambda: False):
    rules = {name: folder if value is BANK else value for name, value in rules.items()}
    request = Request(prompt, LoraDropConfig(**rules), **{"max_new_tokens": 48, "ignore_eos": True} | wanted)
    return gather(run(loaded, request, stop))


def lines_of(trace):
    return [write_line(record) for record in trace.records()]


@pytest.mark.parametrize("name", CASES)
def test_each_fact_is_counted_again(tiny, bank_folder, name, monkeypatch):
    rules, wanted, kind, facts = CASES[name]
    monkeypatch.setattr("lora_drop.run.run.preset_figures", lambda loaded, config: facts.get("preset_figures"))
    trace = trace_of(tiny, rules, wanted, bank_folder)
    concluded = trace.summary.verdict
    check(concluded["facts"], recount(lines_of(trace)))
    assert facts.items() <= concluded["facts"].items()
    looped = concluded["facts"]["collapsed_word"]
    assert concluded["kind"] == (kind or ("compared" if looped is None else "collapsed"))
    again = parse_trace("".join(lines_of(trace)).encode())
    assert concluded == verdict(Report.of(trace)) == verdict(Report.of(again)), "a pure function of the file"


def test_a_reference_decoder_makes_no_claim_of_speed():
    last = trace_of(fresh("reference"), WIDE, {"max_new_tokens": 24}).summary
    assert last.verdict["facts"]["speed"] == "reference"
    assert last.parts is last.why["parts"] is last.why["race"] is None


def test_without_kernels_a_cpu_s_speed_is_not_shown():
    trace = trace_of(fresh("static"), WIDE, {"max_new_tokens": 24})
    last = trace.summary
    facts = last.verdict["facts"]
    assert last.speedup is last.speedup_interval is facts["speed"] is facts["speedup"] is last.parts is None
    assert facts["no_kernels"] == trace.header.device["kernels_missing"] == "build"
    line = "The kernels could not be built (lora-drop doctor says why): speed is not shown."
    assert line in last.verdict["line"] and line[:-1] in last.verdict["text"]
    assert all(figure["id"] != "speed" for figure in last.verdict["figures"])


@pytest.fixture(scope="module")
def rejected(tiny, bank_folder):
    rules = WIDE | EXACT | {"accept": 0.6, "adapters": BANK, "head": "screened"}
    return trace_of(tiny, rules, {"compare": "bare"}, bank_folder)


def test_a_file_cut_anywhere_has_one(rejected):
    lines = lines_of(rejected)
    for end in range(1, len(lines), 37):
        cut = parse_trace("".join([*lines[:end], '{"type": "st']).encode())
        concluded = conclusions(Report.of(cut))
        assert concluded["verdict"]["kind"] == "stopped" and concluded["verdict"]["facts"]["stopped"] == "cut"
        if cut.steps[LORA_DROP] and cut.steps[BASELINE] and cut.steps[THIRD]:
            check(concluded["verdict"]["facts"], recount(lines[:end]))
        wire = [json.loads(line) for line in wire_text(cut).splitlines()]
        ends = [line for line in wire if isinstance(line, dict) and line["type"] == "cut"]
        assert ends == [{"type": "cut", **concluded}]


def test_an_old_file_gets_one(tiny, bank_folder):
    """Of the first version: no audits of quality, no regret, few figures of a lane."""
    lines = []
    for line in map(json.loads, lines_of(trace_of(tiny, WIDE | EXACT, {"compare": "skip"}))):
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
    last = json.loads(wire_text(old).splitlines()[-2])
    assert last["type"] == "summary" and last["verdict"] == verdict(Report.of(old))
    assert last["verdict"]["facts"]["quality_loss"] is None
    check(last["verdict"]["facts"], recount(lines))


# ---- runs made by hand ----

TIMES = {"p": 20.0, "l": 4.0, "r": 10.0}


def facts(*records):
    return asdict(facts_of(Report.of(gathered(*records))))


@pytest.mark.parametrize(
    ("noise", "lora", "speed"),
    [
        ((1.0, 1.0), 4.0, "faster"),
        ((1.0, 1.0), 10.0, "same"),
        ((1.0, 1.0), 12.0, "slower"),
        ((0.4, 1.8), 10.0, "noisy"),
        ((0.6, 1.2), 4.0, "faster"),
    ],
)
def test_what_the_interval_says_of_the_speed(noise, lora, speed):
    """Cycles whose times differ by chance, of which the second lane's alone are noisy."""
    own = [step(LORA_DROP, 0, "prefill", 20.0)]
    for number in range(1, 49):
        share = noise[(number - 1) // 3 % 2]
        own.append(
            step(LORA_DROP, number, "lora" if number % 3 else "refresh", share * (lora if number % 3 else 10.0))
        )
    found = facts(header(), *steps(BASELINE, "p" + "r" * 48, TIMES), *own)
    (low, high), total = found["speedup_interval"], sum(one.ms for one in own[1:])
    assert found["speed"] == speed and found["speedup"] == pytest.approx(480 / total)
    assert low <= found["speedup"] + 1e-4 and found["speedup"] <= high + 1e-4


def test_the_summarys_interval_comes_first():
    ended = summary(speedup=1.2, bound=1.1, speedup_interval=[1.19, 1.21])
    found = facts(*rejecting(), ended)
    assert found["speedup_interval"] == [1.19, 1.21] and found["speed"] == "faster" and found["by_chance"]
    assert not facts(*rejecting(), summary(speedup=1.2, bound=1.2))["by_chance"]


def test_where_a_text_breaks():
    own = steps(LORA_DROP, "plr", TIMES)
    loop = [step(LORA_DROP, number, "refresh", 10.0, token_id=5, text="la ") for number in range(3, 40)]
    found = facts(header(), *steps(BASELINE, "p" + "r" * 39, TIMES), *own, *loop)
    assert (found["collapsed_word"], found["reads"], found["absurd_word"]) == (3, None, None)
    audits = [audit(number, regret=0.05) for number in range(1, 3)]
    found = facts(header(), *steps(BASELINE, "p" + "r" * 39, TIMES), *own, *loop, *audits)
    assert found["quality_loss"] == pytest.approx(0.1 / 3) and found["reads"] == "badly", (
        "a loop reads badly, whatever the loss"
    )
    found = facts(header(), *steps(BASELINE, "prr", TIMES), *own, audit(1, regret=5.0), audit(2, regret=5.1))
    assert found["absurd_word"] == 2, "above 5"
    sampled = header(sampling={"temperature": 0.5})
    assert facts(sampled, *steps(BASELINE, "prr", TIMES), *own, audit(2, regret=9.0))["absurd_word"] is None


def test_a_third_lane_breaks_at_the_earlier_of_loop_and_absurd_word():
    def third(rules, *records):
        other = {"rank": 0} | rules
        base = [*steps(BASELINE, "p" + "r" * 40, TIMES), *steps(LORA_DROP, "plr", TIMES)]
        return facts(header(third=other), *base, *steps(THIRD, "plr", TIMES), *records)["third"]

    loop = [step(THIRD, number, "refresh", 10.0, token_id=5, text="la ") for number in range(3, 40)]
    absurd = [audit(number, THIRD, regret=9.0) for number in (1, 2)]
    found = third({}, *loop)
    assert (found["breaks_after"], found["how"], found["is_bare"], found["lane"]) == (3, "loop", True, THIRD)
    found = third({}, *loop, *absurd)
    assert (found["breaks_after"], found["how"], found["collapsed_word"]) == (1, "absurd", 3)
    found = third({"reuse": "skip"})
    assert (found["breaks_after"], found["how"], found["is_bare"]) == (None, None, False)
    assert not third({"rank": 2})["is_bare"]


def test_the_kind_is_the_first_that_fits():
    base = {"stopped": None, "nothing": None, "accept": 0, "words": None, "collapsed_word": None}
    same, other = {"first": None}, {"first": 3}
    for changes, kind in (
        ({}, "compared"),
        ({"collapsed_word": 0}, "collapsed"),
        ({"accept": 1, "words": same, "collapsed_word": 0}, "lossless"),
        ({"accept": 1, "words": other}, "compared"),
        ({"accept": 1}, "compared"),
        ({"accept": 0.9, "words": same}, "compared"),
        ({"nothing": "head", "accept": 1, "words": same}, "nothing_skipped"),
        ({"stopped": "cut", "nothing": "head"}, "stopped"),
    ):
        assert kind_of(facts_with(base | changes)) == kind, changes


# The facts of a plain run; each case of a kind changes some.
FACTS = {
    "lane": LORA_DROP,
    "tokens": {BASELINE: 40, LORA_DROP: 40},
    "stopped": None,
    "nothing": None,
    "part": "block",
    "accept": 0,
    "head": "full",
    "corrections": None,
    "skipped_share": 0.251,
    "speed": "faster",
    "speedup": 1.204,
    "speedup_interval": [1.18, 1.22],
    "bound": 1.4,
    "by_chance": False,
    "preset_figures": None,
    "kv_saved": 0.204,
    "words": {"full": 30, "lane": 32, "all": 34, "differ": 12, "first": 4},
    "first_token": 6,
    "quality_loss": 0.114,
    "loss_of": "own",
    "reads": "well",
    "collapsed_word": None,
    "absurd_word": None,
    "baseline_collapsed_word": None,
    "third": None,
    "no_kernels": None,
    "accepted": None,
    "accepted_without": None,
    "accepted_in_its_kind": None,
    "refuses": False,
}
SAME = {"words": FACTS["words"] | {"first": None, "differ": 0}}
BARE = {
    **{"lane": THIRD, "label": "Without corrections", "is_bare": True, "breaks_after": None, "how": None},
    **{name: FACTS[name] for name in ("words", "first_token", "reads", "quality_loss", "loss_of", "refuses")},
    **{"collapsed_word": None, "absurd_word": None, "is_uncorrected": False, "accepted": None},
}


def facts_with(changes: dict[str, Any]) -> Facts:
    """The facts of a plain run, with some changed."""
    values = FACTS | changes
    return Facts(**values | {"third": values["third"] and ThirdFacts(**values["third"])})


SENTENCES = {
    "compared": {
        "plain": {},
        "with a wide interval": {"speedup_interval": [1.05, 1.3]},
        "above the bound": {"by_chance": True},
        "slower": {"speed": "slower", "speedup": 0.804, "speedup_interval": [0.79, 0.81]},
        "as fast": {"speed": "same", "speedup": 1.004, "speedup_interval": [0.99, 1.02]},
        "noisy": {"speed": "noisy", "preset_figures": QUIET},
        "short": {"speed": "short", "speedup_interval": None},
        "reference": {"speed": "reference", "speedup": None},
        "alone": {"speed": None, "words": None, "kv_saved": None, "skipped_share": None},
        "attention": {"part": "attention", "reads": "slips", "kv_saved": 0.004},
        "a hundredth saved": {"kv_saved": 0.01},
        "all rejected": {"skipped_share": -0.1, "reads": "badly", "kv_saved": -0.104},
        "same words": SAME,
        "no quality": {"quality_loss": None, "reads": None},
        "the baseline loops": {"baseline_collapsed_word": 7, "corrections": "missing"},
        "accept 1": {"accept": 1, "corrections": "off"},
        "third": {"third": BARE},
        "third, another rule": {"third": BARE | {"is_bare": False, "label": "Skip rule", "reads": "slips"}},
        "third, badly": {"third": BARE | {"reads": "badly", "quality_loss": None}},
        "third, same words": {"third": BARE | SAME},
        "third, no quality": {"third": BARE | {"reads": None}},
        "third, loop": {"third": BARE | {"breaks_after": 5, "how": "loop"}},
        "third, absurd": {"third": BARE | {"breaks_after": 1, "how": "absurd"}},
        "third, at once": {"third": BARE | {"breaks_after": 0, "how": "absurd"}},
    },
    "collapsed": {"plain": {"collapsed_word": 3, "corrections": "off"}, "missing": {"collapsed_word": 0}},
    "lossless": {"plain": SAME | {"accept": 1}, "the baseline loops": SAME | {"baseline_collapsed_word": 2}},
    "nothing_skipped": {
        **{why: {"nothing": why} for why in ("period", "layers", "head", "steps")},
        "steps, alone": {"nothing": "steps", "words": None},
    },
    "stopped": {
        "stopped": {"stopped": "stopped"},
        "one token": {"stopped": "stopped", "tokens": {LORA_DROP: 1}, **SAME, "baseline_collapsed_word": 2},
        "cut": {"stopped": "cut", "words": None, "third": BARE},
    },
}


def test_the_sentence_of_each_kind():
    written = {
        f"{kind}: {name}": sentence(kind, facts_with(changes))
        for kind, cases in SENTENCES.items()
        for name, changes in cases.items()
    }
    check_golden("verdict", written)


ASKED = ("Explain why the sky is blue.", "Write a short story about a lighthouse keeper.")


@pytest.mark.full
@pytest.mark.parametrize(("name", "prompt"), zip(PRESETS, cycle(ASKED)))
def test_the_presets_on_the_bundled_model(bundled, name, prompt):
    config = presets_of(bundled)[name].config
    trace = gather(run(bundled, Request(prompt, config, 24, compare="bare")))
    concluded = trace.summary.verdict
    check(concluded["facts"], recount(lines_of(trace)))
    assert concluded["kind"] in ("compared", "collapsed", "lossless")
    assert (concluded["kind"] == "lossless") == (name == "lossless")
