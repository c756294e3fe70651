"""Bootstrap intervals of measured ratios, with a fixed seed. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence

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
    import numpy as np  # here: it is slow to load, and a command's help needs none of it

    sides = [units] if base is None else [units, base]
    if min(map(len, sides)) < 2:
        return None
    rng = np.random.default_rng(SEED)

    def ratios(side: np.ndarray) -> np.ndarray:
        sums = np.array([side[rng.integers(len(side), size=len(side))].sum(0) for _ in range(RESAMPLES)])
        return sums[:, 0] / np.maximum(sums[:, 1], LEAST)

    above, *below = (ratios(np.array(side, float)) for side in sides)
    for each in below:
        above = above / np.maximum(each, LEAST)
    return [float(end) for end in np.quantile(above, MIDDLE)]
