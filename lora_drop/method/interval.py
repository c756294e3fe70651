"""How sure a measured ratio is: bootstrap intervals, with a fixed seed. Numbers only."""

from __future__ import annotations

import random
from collections.abc import Sequence

RESAMPLES = 2000
LEVEL = 0.95


def ratio_interval(units: Sequence[tuple[float, float]]) -> list[float] | None:
    """The 95% interval of sum(a) / sum(b) over units (a, b), drawn anew with replacement; None for fewer than two.

    A unit is what is drawn whole: a prompt, with its summed loss and its tokens. The sum of all b is above 0.
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
