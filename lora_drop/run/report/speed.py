"""How fast a lane was beside another, with its spread: from records alone.

The speedup is total time for the tokens that stand. Its interval comes from a bootstrap over whole refresh cycles: a
cycle is what runs from one full step to the next, so that the dear steps are neither missed nor counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_drop.method.interval import ratio_interval
from lora_drop.run.trace.records import Header, JudgeRecord, RewindRecord, StepRecord

Cycle = tuple[int, float]  # tokens that stand, milliseconds
LEAST = 4  # cycles: of fewer nothing can be said


def makes_claims(header: Header) -> bool:
    """Whether a run's speed says something of LoRA-Drop: the reference decoder is slow for reasons of its own."""
    return header.device.get("decoder") != "reference"


def cycles(passes: Iterable[StepRecord | RewindRecord | JudgeRecord]) -> list[Cycle]:
    """A lane's decode passes, cut after each full one."""
    found: list[Cycle] = []
    tokens, ms = 0, 0.0
    last = 0  # the last step that stands
    for one in passes:
        if isinstance(one, RewindRecord):
            tokens -= last - one.to
            last = one.to
            continue
        ms += one.ms if not (isinstance(one, StepRecord) and one.step == 0) else 0.0
        if isinstance(one, StepRecord):
            tokens += one.step > 0
            last = one.step
            if one.kind == "lora" or one.step == 0:
                continue
        found.append((tokens, ms))
        tokens, ms = 0, 0.0
    return [*found, (tokens, ms)] if tokens else found


def speedup_of(one: Sequence[Cycle], two: Sequence[Cycle]) -> float | None:
    """The second lane's tokens a second over the first's, both up to the tokens of the shorter one, in whole cycles.

    None where a lane has none.
    """
    shorter = min(sum(tokens for tokens, _ in lane) for lane in (one, two))

    def rate(lane: Sequence[Cycle]) -> float:
        tokens, ms = 0, 0.0
        for more, spent in lane:
            if tokens >= shorter:
                break
            tokens, ms = tokens + more, ms + spent
        return tokens / max(ms, 1e-9)

    return rate(two) / rate(one) if shorter > 0 else None


def speedup_interval(one: Sequence[Cycle], two: Sequence[Cycle]) -> list[float] | None:
    """95% interval of the second lane's tokens per second over the first's, [low, high], of resampled cycles.

    None where a lane has too few cycles.
    """
    interval = ratio_interval(two, one) if min(len(one), len(two)) >= LEAST else None
    return interval and [round(end, 4) for end in interval]
