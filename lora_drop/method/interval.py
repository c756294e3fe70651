"""Bootstrap intervals of measured ratios, with a fixed seed. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence

RESAMPLES, SEED = 2000, 0
LOW, HIGH = 0.025, 0.975  # 95%
LEAST = 1e-9  # a sum below it counts as this much: no division by zero

Unit = tuple[float, float]


def ratio_interval(units: Sequence[Unit]) -> list[float] | None:
    """95% interval of sum(a) / sum(b) over resampled units, [low, high]; None for fewer than two units."""
    return ratio_quantiles(units, at=(LOW, HIGH)) if len(units) > 1 else None


def ratio_quantiles(units: Sequence[Unit], base: Sequence[Unit] = (), *, at: Sequence[float]) -> list[float]:
    """Quantiles of sum(a) / sum(b) over resampled units (a, b). The same units give the same quantiles.

    Args:
        units: drawn whole, with replacement: a prompt with its loss and its tokens, a refresh cycle with its tokens
            and its time. b is not negative.
        base: the ratio of these divides that of `units`; one for each unit, drawn with it. A speedup has a lane on
            either side.
        at: the quantiles, from 0 to 1.
    """
    import numpy as np  # here: it is slow to load, and a command's help needs none of it

    count = len(units)
    random = np.random.default_rng(SEED)
    values = np.hstack([np.array(side, float) for side in (units, base) if side])
    # A sample at a time: all of them together take 16 kB a unit.
    sums = np.array([values[random.integers(count, size=count)].sum(0) for _ in range(RESAMPLES)])
    ratio, *of_base = (sums[:, i] / np.maximum(sums[:, i + 1], LEAST) for i in range(0, sums.shape[1], 2))
    if of_base:
        ratio = ratio / np.maximum(of_base[0], LEAST)
    return [float(end) for end in np.quantile(ratio, at)]
