"""Bootstrap intervals of measured ratios, with a fixed seed. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES, SEED = 2000, 0
MIDDLE = (0.025, 0.975)  # 95%
LEAST = 1e-9  # a sum below it counts as this much: no division by zero

Unit = tuple[float, float]


def ratio_interval(units: Sequence[Unit], base: Sequence[Unit] | None = None) -> list[float] | None:
    """95% interval of sum(a) / sum(b) over resampled units (a, b). The same units give the same interval.

    Args:
        units: drawn whole, with replacement: a prompt with its loss and its tokens, a refresh cycle with its tokens
            and its time. b is not negative.
        base: the ratio of these, drawn on their own, divides that of `units`. A speedup has a lane on either side.

    Returns:
        [low, high]; None for fewer than two units.
    """
    sides = [units] if base is None else [units, base]
    if min(map(len, sides)) < 2:
        return None
    rng = np.random.default_rng(SEED)
    above, *below = (_ratios(np.array(side, float), rng) for side in sides)
    for ratios in below:
        above = above / np.maximum(ratios, LEAST)
    return [float(end) for end in np.quantile(above, MIDDLE)]


def _ratios(units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """sum(a) / sum(b) of each resample of units (n, 2)."""
    count = len(units)
    sums = np.array([units[rng.integers(count, size=count)].sum(0) for _ in range(RESAMPLES)])
    return sums[:, 0] / np.maximum(sums[:, 1], LEAST)
