"""What the page says of a run in words, where a number alone would mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOISY = "too noisy here to tell"
GAIN = 1.03  # a speedup that is surely below it is none
NOISE = 0.1  # an interval wider than this share of the speedup says too little


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
    return NOISY if high - low > NOISE * speedup else None


def lane_words(lanes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is wrong with lanes' texts, by lane, from their figures in the summary."""
    loops = {name: lane.get("collapsed") for name, lane in lanes.items()}
    return {name: f"Goes in circles from token {at + 1:g} on." for name, at in loops.items() if at is not None}
