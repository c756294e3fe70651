"""How sure a measured ratio is: bootstrap intervals, with a fixed seed. Numbers only."""

from __future__ import annotations

import random
from collections.abc import Sequence

RESAMPLES = 2000
LEVEL = 0.95


def ratio_interval(units: Sequence[tuple[float, float]]) -> list[float] | None:
    """The 95% interval of sum(a) / sum(b) over units (a, b), drawn anew with replacement; None for fewer than two.

    A unit is what is drawn whole: a prompt (its summed loss, its tokens), a refresh cycle (the milliseconds of the
    baseline and of the lane for the same tokens). The sum of all b is above 0.
    """
    if len(units) < 2:
        return None
    rng = random.Random(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.choices(units, k=len(units))
        found.append(sum(a for a, _ in drawn) / sum(b for _, b in drawn))
    found.sort()
    outside = int((1 - LEVEL) / 2 * RESAMPLES)
    return [found[outside], found[-1 - outside]]


def cycles(baseline_ms: Sequence[float], lane: Sequence[tuple[float, int, bool]]) -> list[tuple[float, float]]:
    """The milliseconds (baseline, lane) of each whole refresh cycle of a lane, for the same kept tokens.

    Args:
        baseline_ms: of the baseline's decode steps, in order: step s gives token s.
        lane: of each of the lane's passes after prefill its milliseconds, the tokens that it adds to the text (a
            pass that takes some back adds fewer than none) and whether it ends a cycle: a full step does.

    Returns:
        One pair a cycle, as far as the baseline goes; what follows the last full step is left out.
    """
    found, kept, counted, spent = [], 0, 0, 0.0
    for ms, tokens, ends in lane:
        kept, spent = kept + tokens, spent + ms
        if kept > len(baseline_ms):
            break
        if ends:
            found.append((float(sum(baseline_ms[counted:kept])), spent))
            counted, spent = kept, 0.0
    return found
