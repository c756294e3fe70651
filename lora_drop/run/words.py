"""What the page says of a run in words, where a number alone would mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

NOISY = "too noisy here to tell"
GAIN = 1.03  # a speedup that is surely above it is one
SLOWER = 0.97  # one that is surely below it is a loss
NOISE = 0.1  # an interval wider than this share of the speedup says too little


Speed = Literal["faster", "slower", "noisy", "same"]


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
    """True if two decimals of the speedup would say more than is known."""
    return interval[1] - interval[0] > NOISE * speedup


def speedup_words(speedup: float | None, interval: Sequence[float] | None) -> str | None:
    """What stands in place of a measured speedup; None where the number may stand.

    Args:
        interval: its 95% interval, [low, high]; None where it was too short to have one.
    """
    if speedup is None or interval is None or len(interval) != 2:
        return None
    low, high = interval
    if high < GAIN:
        return "gains no time here"
    if not is_wide(speedup, interval):
        return None
    return f"{low:.1f}x to {high:.1f}x" if speed_of(speedup, interval) == "faster" else NOISY


def lane_words(lanes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is wrong with lanes' texts, by lane, from their figures in the summary."""
    loops = {name: lane.get("collapsed") for name, lane in lanes.items()}
    return {name: f"Goes in circles from token {at + 1:g} on." for name, at in loops.items() if at is not None}
