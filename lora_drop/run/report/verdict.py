"""What a run comes to: its verdict in a sentence, why its charts look as they do, and where its time goes.

The verdict is a pure function of the run's records, also of a run that is old or was cut short. `verdict` gathers the
facts (`facts_of`), takes the first kind that fits, and writes its sentence; every figure in the sentence is a fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from lora_drop.method.quality import ABSURD, WORDS, loss_words, reads, repeated_share, repetition
from lora_drop.run.report.align import align, word_at
from lora_drop.run.report.facts import Facts, Kind, SpeedFacts, TextFacts, ThirdFacts, memory_words, notes
from lora_drop.run.report.headline import headline, is_timed, refuses, untimed_words
from lora_drop.run.report.parts import parts_of
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import Speed, is_by_chance, is_wide, lacks_kernels, makes_claims, speed_of
from lora_drop.run.report.table import lane_table
from lora_drop.run.report.why import why
from lora_drop.run.report.words import counted
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD, LaneConfig, Verdict


def conclusions(report: Report) -> dict[str, Any]:
    """`{"verdict", "why", "parts", "table"}` of a run, also of one that was cut short."""
    judgement = verdict(report)
    parts = parts_of(report, judgement["facts"]["bound"])
    return {"verdict": judgement, "why": why(report, parts), "parts": parts, "table": lane_table(report)}


def verdict(report: Report) -> Verdict:
    """The verdict of a run: `{"kind", "text", "facts"}` and its `headline`. The same records give the same one."""
    facts = facts_of(report)
    kind = kind_of(facts)
    glance = headline(kind, facts)
    text, line = sentence(kind, facts), glance["line"]
    if is_of_rival(report):
        label = report.trace.header.main["label"].partition(":")[0]
        text, line = (words.replace("LoRA-Drop", label) for words in (text, line))
    return {"kind": kind, "text": text, "facts": asdict(facts), "figures": glance["figures"], "line": line}


def is_of_rival(report: Report) -> bool:
    """True if a run is about another method than LoRA-Drop."""
    main = report.trace.header.main
    return "method" in main and main["id"] != LORA_DROP


def kind_of(facts: Facts) -> Kind:
    """The first kind that fits."""
    if facts.stopped:
        return "stopped"
    if facts.nothing:
        return "nothing_skipped"
    words = facts.words
    if facts.accept == 1 and words and words["first"] is None:
        return "lossless"
    return "compared" if facts.collapsed_word is None else "collapsed"


def facts_of(report: Report) -> Facts:
    """Count the facts of a run."""
    trace, lane = report.trace, report.lanes[report.main]
    third = _third_facts(report)
    return Facts(
        **vars(_text_facts(report, report.main)),
        **vars(_speed_facts(report)),
        lane=report.main,
        tokens={name: len(steps) for name, steps in trace.steps.items()},
        stopped=_stopped_by(report),
        nothing=_nothing_skipped(report),
        part=lane.schedule.part,
        accept=lane.schedule.accept,
        head=lane.schedule.head,
        corrections=None if is_of_rival(report) else _corrections(trace.header.main["config"]),
        skipped_share=lane.skipped_share,
        accepted=lane.acceptance,
        accepted_without=_accepted_without(report, third),
        accepted_in_its_kind=_accepted_in_its_kind(report),
        baseline_collapsed_word=_loop_word(report, BASELINE) if report.has_baseline else None,
        third=third,
    )


def _text_facts(report: Report, lane: str) -> TextFacts:
    trace, ours = report.trace, report.lanes[lane]
    is_beside = BASELINE in trace.steps and lane != BASELINE
    loop_word = _loop_word(report, lane)
    how = None
    if is_beside:
        ids = [report.lanes[name].text_ids(_ended(report, name)) for name in (lane, BASELINE)]
        how = reads(ours.loss, repeated_share(ids[0]), repeated_share(ids[1]), float(loop_word is not None))
    texts = [step.text for step in trace.steps[lane]]
    absurd = None
    if not trace.header.sampling.get("temperature"):  # a sampled token may be one that no argmax would be
        steps = (step for step, audit in sorted(trace.audits[lane].items()) if (audit.regret or 0) > ABSURD)
        absurd = next(steps, None)
    return TextFacts(
        words=align(trace.text(BASELINE), trace.text(lane)).counts if is_beside else None,
        first_token=report.first_difference(lane) if is_beside else None,
        quality_loss=ours.loss,
        loss_of=None if ours.loss is None else "own",
        reads=how,
        refuses=is_beside and refuses(trace.text(lane)) and not refuses(trace.text(BASELINE)),
        collapsed_word=loop_word,
        absurd_word=None if absurd is None else word_at(texts, absurd),
    )


def _accepted_without(report: Report, third: ThirdFacts | None) -> float | None:
    """Share of the drafts that the full model accepts without corrections: of this run's third lane if that changes
    nothing else, else as measured for the preset."""
    if third is not None and third.is_uncorrected:
        return report.lanes[THIRD].acceptance
    figures = report.trace.header.preset_figures
    return figures.get("accepted_without") if figures else None


def _accepted_in_its_kind(report: Report) -> tuple[str, float] | None:
    """The group of answers that repeat themselves as much as this run's, and the share accepted as measured there."""
    if (figures := report.trace.header.preset_figures) is None:
        return None
    group = repetition(repeated_share(report.lanes[report.main].text_ids(_ended(report, report.main))))
    accepted = figures.get("accepted_by_repeats", {}).get(group)
    return None if accepted is None else (group, accepted)


def _stopped_by(report: Report) -> Literal["stopped", "cut"] | None:
    """Why a run has no end: it was `stopped`, or its file is `cut` short."""
    summary = report.trace.summary
    if summary is None:
        return "cut"
    return "stopped" if any(lane.get("ended") == "stopped" for lane in summary.lanes.values()) else None


def _nothing_skipped(report: Report) -> Literal["period", "layers", "head", "steps"] | None:
    """Why nothing was skipped: the `period`, no `layers`, only the `head` screened, or no LoRA `steps`."""
    lane = report.lanes[report.main]
    if lane.schedule.is_baseline:
        return "period" if lane.schedule.dropped else "layers"
    if not (lane.schedule.dropped or lane.schedule.lookup):
        return "head"
    return None if lane.lora or lane.rejected else "steps"


def _corrections(config: LaneConfig) -> Literal["off", "missing"] | None:
    """None where corrections ran (or the trace does not say), else `off` by request or `missing`."""
    if config.get("rank") or "rank" not in config:
        return None
    return "off" if config.get("adapters") == "none" or config.get("corrections") is False else "missing"


def _speed_facts(report: Report) -> SpeedFacts:
    figures, interval = report.figures(), None
    speed: Speed | Literal["short", "reference"] | None = None
    has_baseline = report.has_baseline
    speedup, bound = (figures["speedup"], figures["bound"]) if has_baseline else (None, None)
    device = dict(report.trace.header.device)
    no_kernels = (
        str(device.get("kernels_missing", "")) or "unknown" if has_baseline and lacks_kernels(device) else None
    )
    if has_baseline and not makes_claims(report.trace.header):
        speed = None if no_kernels else "reference"
    elif speedup is not None:
        summary = report.trace.summary
        interval = (summary and summary.speedup_interval) or report.speedup_interval(report.main)
        speed = speed_of(speedup, interval) or "short"
    return SpeedFacts(
        speed=speed,
        no_kernels=no_kernels,
        speedup=speedup,
        speedup_interval=interval,
        bound=bound,
        by_chance=is_by_chance(speedup, bound),
        preset_figures=report.trace.header.preset_figures,
        kv_saved=figures["kv_saved"] if has_baseline else None,
    )


def _loop_word(report: Report, lane: str) -> int | None:
    """The word where the loop begins in which a lane's text ends; None where it does not."""
    at = report.lanes[lane].loop_at(_ended(report, lane))
    return None if at is None else word_at([step.text for step in report.trace.steps[lane]], at)


def _ended(report: Report, lane: str) -> str | None:
    summary = report.trace.summary
    return summary.lanes[lane].get("ended") if summary else None


def _third_facts(report: Report) -> ThirdFacts | None:
    lane = next((entry for entry in report.trace.header.lanes if entry["id"] == THIRD), None)
    if lane is None or BASELINE not in report.lanes:
        return None
    main, third = report.lanes[report.main], report.lanes[THIRD]
    facts = _text_facts(report, THIRD)
    breaks: list[tuple[int | None, Literal["loop", "absurd"]]] = [
        (facts.collapsed_word, "loop"),
        (facts.absurd_word, "absurd"),
    ]
    after, how = min(((at, how) for at, how in breaks if at is not None), default=(None, None))
    config: Mapping[str, object] = report.trace.header.main["config"]
    other: Mapping[str, object] = lane["config"]
    is_bare = bool(config.get("rank")) and not other.get("rank") and third.schedule.reuse == main.schedule.reuse
    changed = {name for name in other.keys() & config.keys() if other[name] != config[name]}
    return ThirdFacts(
        **vars(facts),
        lane=THIRD,
        label=lane["label"],
        is_bare=is_bare,
        is_uncorrected=is_bare and changed <= {"corrections", "rank", "corrected", "extras"},
        accepted=third.acceptance,
        breaks_after=after,
        how=how,
    )


_NOTHING = {
    "period": "Nothing was skipped: at period 1 every step runs every layer, so this is the full model",
    "layers": "Nothing was skipped: no layer is chosen, so this is the full model",
    "head": "No layer is skipped, only the head is screened",
    "steps": "Nothing was skipped: every step was a full one",
}


def sentence(kind: Kind, facts: Facts) -> str:
    """The text of a verdict, from its facts alone."""
    text = ", ".join(filter(None, _clauses(kind, facts)))
    if kind != "stopped" and (third := _third(facts)):
        text += f"; {third}"
    if kind == "compared" and facts.accept == 1 and facts.words:
        text += ". With accept 1 only rounding makes the answers differ"
    return " ".join([f"{text[:1].upper()}{text[1:]}.", *notes(kind, facts)])


def _clauses(kind: Kind, facts: Facts) -> Iterator[str | None]:
    words = facts.words
    match kind:
        case "stopped":
            length = f"{counted(facts.tokens[facts.lane], 'token')} of the answer"
            yield f"The file is cut short after {length}" if facts.stopped == "cut" else f"Stopped after {length}"
            if facts.first_word is not None:
                yield f"the answers differ from word {facts.first_word + 1} on"
            elif words:
                yield "the answers are the same so far"
        case "nothing_skipped":
            yield _NOTHING[facts.nothing or "steps"]
            if facts.nothing in ("head", "steps") and words:
                yield from (_speed(facts), _answers(facts))
        case "lossless":
            same = "the answer is the full model's, word for word"
            yield from (_speed(facts), _skipped(facts), same, _memory(facts))
        case "collapsed":
            yield f"LoRA-Drop's answer goes in circles from word {(facts.collapsed_word or 0) + 1} on"
            yield from (_skipped(facts), _speed(facts), _memory(facts))
        case _:
            yield from (_speed(facts), _skipped(facts), _answers(facts), _memory(facts))


def _speed(facts: Facts) -> str | None:
    speed, speedup, interval = facts.speed, facts.speedup, facts.speedup_interval
    if speedup is None or interval is None or not is_timed(facts):
        return untimed_words(facts)
    if speed == "same":
        return f"as fast as the full model ({speedup:.2f}x)"
    if is_wide(speedup, interval):
        low, high = interval
        return f"{speed} ({low:.2f}x to {high:.2f}x)"
    return f"{speedup:.2f}x faster" if speed == "faster" else f"slower ({speedup:.2f}x)"


def _skipped(facts: Facts) -> str | None:
    share = facts.skipped_share
    if share is None:
        return None
    reads = "attention reads" if facts.part == "attention" else "layer reads"
    return f"{share:.0%} of {reads} skipped" if share > 0 else "no gain: too many guesses were rejected"


def _answers(facts: Facts) -> str | None:
    words = facts.words
    if words is None:
        return "without the full model beside it there is nothing to compare the answer with"
    loss = _loss(facts.quality_loss)
    if words["first"] is None:
        return f"the answers are the same, word for word{loss}"
    reads = f"LoRA-Drop's text {WORDS[facts.reads]}{loss}" if facts.reads else "the quality was not measured"
    return f"the wording differs from word {words['first'] + 1} on, and {reads}"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f" (regret {loss_words(loss)} nats per token)"


def _memory(facts: Facts) -> str | None:
    return None if facts.kv_saved is None else memory_words(facts.kv_saved) or "no memory saved"


def _third(facts: Facts) -> str | None:
    third = facts.third
    if third is None:
        return None
    lead = "without corrections" if third.is_bare else f"in the lane \u201c{third.label}\u201d"
    if third.breaks_after is not None:
        verb = "goes in circles" if third.how == "loop" else "breaks"
        where = f"after {counted(third.breaks_after, 'word')}" if third.breaks_after else "at its first word"
        return f"{lead} the text {verb} {where}"
    if third.first_word is None:
        return f"{lead} the text is the full model's too"
    if third.reads:
        return f"{lead} the text {WORDS[third.reads]}{_loss(third.quality_loss)}"
    return f"{lead} the text differs from word {third.first_word + 1} on"
