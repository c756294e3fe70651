"""The verdict at one glance: three figures (speed, guesses, reading) and a line, from the verdict's facts alone.

A figure that was not measured is left out. Ranges and reasons are in each figure's `detail`, which the page folds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypedDict

from lora_drop.method.quality import CRITERION, READS_WELL_LOSS, SLIPS_LOSS, WORDS, loss_words
from lora_drop.run.report.facts import Facts, Kind, memory_words, notes
from lora_drop.run.report.speed import GAIN, SLOWER, no_gain_reason

Figure = dict[str, str]

# What a refusal begins with, and the characters of an answer in which it must: a later one is part of an answer.
REFUSALS = (
    *("i cannot", "i can't", "i can\u2019t", "i can not", "i am unable", "i'm unable", "i\u2019m unable", "i won't"),
    *("i'm sorry", "i\u2019m sorry", "i am sorry", "sorry,", "i apologize", "i apologise", "as an ai", "i'm not able"),
    *("i\u2019m not able", "i am not able", "unfortunately, i"),
)
REFUSES_BY = 60
NO_KERNELS = {  # by a trace's `kernels_missing`: why torch decodes on a CPU, and what to do
    "off": "the kernels are turned off (unset LORA_DROP_NATIVE)",
    "compiler": "no kernels (install a C compiler, or this platform's wheel)",
    "build": "the kernels could not be built (lora-drop doctor says why)",
}


class Headline(TypedDict):
    """Figures of `{"id", "value", "label", "detail"}`, and a line."""

    figures: list[Figure]
    line: str


def headline(kind: Kind, facts: Facts) -> Headline:
    """The headline of a verdict; an unfinished run has no figures.

    Ids are `speed`; `accepted`, or `skipped` where no guess is verified; and `reads`.
    """
    figures = [] if kind == "stopped" else [*filter(None, (_speed(facts), _guesses(facts), _reads(facts)))]
    return {"figures": figures, "line": " ".join(_line(kind, facts))}


def is_timed(facts: Facts) -> bool:
    """Whether the run's speed may be a headline: it is measured, not too noisy, and within the bound."""
    return facts.speed in ("faster", "slower", "same") and not facts.by_chance


def refuses(text: str) -> bool:
    """Whether an answer begins with a refusal, or a clause within its first `REFUSES_BY` characters does."""
    start = text[:REFUSES_BY].lower()
    return any(re.search(rf"(^|[.!?,;:])\s*{re.escape(opening)}", start) for opening in REFUSALS)


def untimed_words(facts: Facts) -> str | None:
    """What to say of a speed that is no headline, with that of the same preset on this machine when it was quiet; None
    without a speed."""
    if facts.no_kernels:
        return f"{NO_KERNELS.get(facts.no_kernels, 'no kernels')}: speed is not shown"
    if facts.speed is None:
        return None
    if facts.speed == "reference":
        return "the reference decoder makes no claim of speed"
    why = "this run is too short to time" if facts.speed == "short" else "this run's timing is noisy"
    quiet = facts.quiet_speedup
    return f"{_quiet(quiet)}; {why}" if quiet else why


def _quiet(gain: float) -> str:
    if gain > GAIN:
        return f"about {gain - 1:.0%} faster on a quiet machine"
    return f"about {1 - gain:.0%} slower on a quiet machine" if gain < SLOWER else "no gain on a quiet machine"


def _gains_nothing(facts: Facts) -> bool:
    """Whether the run's speed, or where it is no headline that of a quiet machine, is no gain."""
    quiet = facts.quiet_speedup
    return facts.speed in ("same", "slower") if is_timed(facts) else quiet is not None and quiet <= GAIN


def _figure(name: str, value: str, label: str, detail: str = "") -> Figure:
    return {"id": name, "value": value, "label": label, "detail": detail}


def _speed(facts: Facts) -> Figure | None:
    if not is_timed(facts) or facts.speedup_interval is None:
        return None
    low, high = facts.speedup_interval
    note = {"slower": ": slower here", "same": ": no gain here"}.get(facts.speed or "", "")
    label = f"the full model's speed{note}"
    detail = f"95% interval of this run: {low:.2f}\u00d7 to {high:.2f}\u00d7."
    if facts.bound:
        detail += f" Bound, an estimate from memory traffic: {facts.bound:.2f}\u00d7."
    return _figure("speed", f"{facts.speedup:.2f}\u00d7", label, detail)


def _guesses(facts: Facts) -> Figure | None:
    accepted, share = facts.accepted, facts.skipped_share
    if facts.accept and accepted is not None:
        without = facts.accepted_without
        label = "guesses accepted" + ("" if without is None else f"; {_of_100(without)} without corrections")
        detail = "A guess is a token of a LoRA step. The full model checks each one and rejects the unlikely."
        if facts.accepted_in_its_kind:
            group, usual = facts.accepted_in_its_kind
            detail += f" In measured answers that repeat as much ({group} of their 4-grams): {_of_100(usual)} of 100."
        return _figure("accepted", f"{_of_100(accepted)} of 100", label, detail)
    if share is None or facts.nothing in ("period", "layers"):
        return None
    part = "attention" if facts.part == "attention" else "layer"
    detail = f"Share of the full model's {part} reads that this answer did without. No guess is checked."
    return _figure("skipped", f"{max(share, 0.0):.0%}", f"of {part} reads skipped", detail)


def _reads(facts: Facts) -> Figure | None:
    words = facts.words
    if words is None:
        return None
    loss = facts.quality_loss
    detail = "" if loss is None else _loss(loss)
    if words["first"] is None:
        return _figure("reads", "Same text", "as the full model, word for word", detail)
    label = f"wording differs from word {words['first'] + 1}"
    if facts.collapsed_word is not None:
        return _figure("reads", "Goes in circles", f"from word {facts.collapsed_word + 1} on", detail)
    if facts.refuses:
        return _figure("reads", "Refuses", "where the full model answers", detail)
    if facts.reads is None:
        return _figure("reads", "Differs", f"{label}; quality not measured", detail)
    return _figure("reads", WORDS[facts.reads].capitalize(), label, detail)


def _loss(loss: float) -> str:
    rated = "nearly as likely as" if loss <= READS_WELL_LOSS else "less likely than"
    rated = "far less likely than" if loss > SLIPS_LOSS else rated
    return f"The full model rates it {rated} its own (regret {loss_words(loss)} nats per token). {CRITERION}"


def _line(kind: Kind, facts: Facts) -> Iterator[str]:
    if kind != "stopped" and not is_timed(facts) and (words := untimed_words(facts)):
        yield f"{words[:1].upper()}{words[1:]}."
    head = facts.preset_figures.get("head_speedup") if facts.preset_figures else None
    if head and facts.head == "screened" and kind != "stopped":
        yield f"LoRA-Drop's screened head (a cheaper output layer) alone: {head:.2f}\u00d7 here."
    if facts.accept and facts.skipped_share is not None and facts.skipped_share <= 0:
        yield "No gain: too many guesses were rejected."
    elif kind != "stopped" and facts.nothing is None and facts.bound and _gains_nothing(facts):
        yield f"Why no gain: {no_gain_reason(facts.bound, facts.accepted)}."
    yield from notes(kind, facts)
    if words := memory_words(facts.kv_saved):
        yield f"{words}."


def _of_100(share: float) -> str:
    return f"{100 * share:.0f}"
