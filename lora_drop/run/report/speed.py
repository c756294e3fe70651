"""How fast a lane was beside another, with its spread, and what may be claimed of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lora_drop.method.interval import ratio_interval
from lora_drop.run.trace.records import Header

# From one full step to the next, so that each slow step counts exactly once: tokens that stand, and milliseconds.
Cycle = tuple[int, float]
Speed = Literal["faster", "slower", "noisy", "same"]

LEAST_CYCLES = 4  # fewer have no interval
NOISY = "too noisy here to tell"
GAIN = 1.03  # a speedup that is surely above it is one
SLOWER = 0.97  # one that is surely below it is a loss
NOISE = 0.1  # an interval wider than this share of the speedup says too little
BY_CHANCE = 1.03  # a speedup this far beyond the bound is noise: the lanes ran under different load


def makes_claims(header: Header) -> bool:
    """Whether a run's speed says something of LoRA-Drop: the reference decoder is slow for reasons of its own."""
    return header.device.get("decoder") != "reference"


def speedup_interval(one: Sequence[Cycle], two: Sequence[Cycle]) -> list[float] | None:
    """95% interval of the second lane's tokens per second over the first's, [low, high], of resampled cycles.

    None where a lane has too few cycles.
    """
    interval = ratio_interval(two, one) if min(len(one), len(two)) >= LEAST_CYCLES else None
    return interval and [round(end, 4) for end in interval]


def is_by_chance(speedup: float | None, bound: float | None) -> bool:
    """True if a speedup is beyond what the bytes allow."""
    return bool(speedup and bound and speedup > BY_CHANCE * bound)


def speed_of(speedup: float, interval: Sequence[float] | None) -> Speed | None:
    """What a measured speedup says, by its 95% interval, [low, high]; None without one: the run was too short."""
    if interval is None or len(interval) != 2:
        return None
    low, high = interval
    if low > GAIN:
        return "faster"
    if high < SLOWER:
        return "slower"
    return "noisy" if is_wide(speedup, interval) else "same"


def is_wide(speedup: float, interval: Sequence[float]) -> bool:
    """True if the interval is too wide for a speedup with two decimals."""
    return interval[1] - interval[0] > NOISE * speedup


def speedup_words(speedup: float | None, interval: Sequence[float] | None) -> str | None:
    """What to show instead of a measured speedup; None where the number may be shown.

    Args:
        interval: its 95% interval, [low, high]; None where the run was too short for one.
    """
    if speedup is None or interval is None or len(interval) != 2:
        return None
    low, high = interval
    if high < GAIN:
        return "gains no time here"
    if not is_wide(speedup, interval):
        return None
    return f"{low:.1f}x to {high:.1f}x" if speed_of(speedup, interval) == "faster" else NOISY
