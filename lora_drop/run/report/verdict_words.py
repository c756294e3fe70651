"""The verdict's sentence, from its facts alone: `verdict.py` has what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_drop.run.report.words import is_wide

Facts = dict[str, Any]
_NOTHING = {
    "period": "Nothing was skipped: at period 1 every step runs every layer, so this is the full model",
    "layers": "Nothing was skipped: no layer is chosen, so this is the full model",
    "head": "No layer is skipped, only the head is screened",
    "steps": "Nothing was skipped: every step was a full one",
}
_READS = {"well": " and both read well", "slips": ", and LoRA-Drop's slips", "badly": ", and LoRA-Drop's reads badly"}
_THIRD_READS = {"well": "reads well too", "slips": "slips", "badly": "reads badly"}


def said(kind: str, facts: Facts) -> str:
    """The text of a verdict."""
    parts = {"stopped": _stopped, "nothing_skipped": _nothing, "lossless": _lossless, "collapsed": _collapsed}
    text = ", ".join(filter(None, parts.get(kind, _compared)(facts)))
    if kind != "stopped" and (third := _third(facts)):
        text += f"; {third}"
    return " ".join([_sentence(text), *_notes(kind, facts)])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _stopped(facts: Facts) -> Iterator[str | None]:
    tokens = facts["tokens"]
    own = f"{_count(tokens[facts['lane']], 'token')} of the answer"
    yield f"The file is cut short after {own}" if facts["stopped"] == "cut" else f"Stopped after {own}"
    words = facts["words"]
    if words:
        first = words["first"]
        yield "the answers are the same so far" if first is None else f"the answers differ from word {first + 1} on"


def _nothing(facts: Facts) -> Iterator[str | None]:
    yield _NOTHING[facts["nothing"]]
    if facts["nothing"] in ("head", "steps") and facts["words"]:
        yield from (_speed(facts), _answers(facts))


def _lossless(facts: Facts) -> Iterator[str | None]:
    yield from (_speed(facts), _skipped(facts))
    yield "the answer is the full model's, word for word"
    yield _memory(facts)


def _collapsed(facts: Facts) -> Iterator[str | None]:
    yield f"LoRA-Drop's answer goes in circles from word {facts['collapsed_word'] + 1} on"
    yield from (_skipped(facts), _speed(facts), _memory(facts))


def _compared(facts: Facts) -> Iterator[str | None]:
    yield from (_speed(facts), _skipped(facts), _answers(facts), _memory(facts))


def _speed(facts: Facts) -> str | None:
    speed, speedup, interval = facts["speed"], facts["speedup"], facts["speedup_interval"]
    if speed in ("faster", "slower"):
        if is_wide(speedup, interval):
            low, high = interval
            return f"{speed} ({low:.2f}x to {high:.2f}x)"
        bound = f" (above the bound of {facts['bound']:.2f}x that memory traffic sets)" if facts["by_chance"] else ""
        return f"{speedup:.2f}x faster{bound}" if speed == "faster" else f"slower ({speedup:.2f}x)"
    if speed == "same":
        return f"as fast as the full model ({speedup:.2f}x)"
    idle = facts["idle"]
    known = f" (measured idle: {idle['speedup']:.2f}x on {idle['device']})" if idle else ""
    if speed == "noisy":
        return f"too noisy here to tell the speed{known}"
    if speed == "short":
        return f"too short to tell the speed{known}"
    return "the reference decoder makes no claim of speed" if speed == "reference" else None


def _skipped(facts: Facts) -> str | None:
    share = facts["skipped_share"]
    if share is None:
        return None
    what = "attention" if facts["part"] == "attention" else "layer"
    return f"{share:.0%} of {what} runs skipped" if share > 0 else f"no {what} run spared, as too much was taken back"


def _answers(facts: Facts) -> str | None:
    words = facts["words"]
    if words is None:
        return "without the full model beside it there is nothing to compare the answer with"
    loss = _loss(facts["quality_loss"])
    if words["first"] is None:
        return f"the answers are the same, word for word{loss}"
    differ = f"the answers differ from word {words['first'] + 1} on ({words['differ']} of {words['all']} words)"
    if facts["baseline_collapsed_word"] is not None and facts["reads"] == "well":
        return f"{differ}, and LoRA-Drop's reads well{loss}"
    return f"{differ}{_READS.get(facts['reads'], '')}{loss or ', and the quality was not measured'}"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f" (quality loss {loss:.2f} nats per token)"


def _memory(facts: Facts) -> str | None:
    saved = facts["kv_saved"]
    if saved is None:
        return None
    if abs(saved) < 0.01:
        return "no memory saved"
    return f"{saved:.0%} of the K/V memory saved" if saved > 0 else f"{-saved:.0%} more K/V memory"


def _third(facts: Facts) -> str | None:
    third = facts["third"]
    if third is None:
        return None
    lead = "without corrections" if third["is_bare"] else f"in the lane \u201c{third['label']}\u201d"
    if third["breaks_after"] is not None:
        verb = "goes in circles" if third["how"] == "loop" else "breaks"
        where = f"after {_count(third['breaks_after'], 'word')}" if third["breaks_after"] else "at its first word"
        return f"{lead} the text {verb} {where}"
    first = third["words"]["first"]
    if first is None:
        return f"{lead} the text is the full model's too"
    if third["reads"]:
        return f"{lead} the text {_THIRD_READS[third['reads']]}{_loss(third['quality_loss'])}"
    return f"{lead} the text differs from word {first + 1} on"


def _notes(kind: str, facts: Facts) -> Iterator[str]:
    loop = facts["baseline_collapsed_word"]
    if kind != "stopped" and loop is not None:
        yield f"The full model's own answer goes in circles from word {loop + 1} on."
    if kind in ("collapsed", "compared") and facts["corrections"] == "missing":
        yield "There are no trained corrections for these settings: this is plain skipping."
    elif kind in ("collapsed", "compared") and facts["corrections"] == "off":
        yield "Corrections are off."
    if kind == "compared" and facts["accept"] == 1 and facts["words"]:
        yield "Where every other token is taken back, only rounding makes the answers differ."
    if kind == "collapsed":
        yield "Skip fewer layers, or take a shorter period."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
