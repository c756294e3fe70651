"""What the page says of a run in words, where a number alone would mislead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lora_drop.method.settings import RUN, SCHEDULE, settings_of
from lora_drop.run.trace.records import Header

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


def setting_words(header: Header) -> list[str]:
    """What was asked for, in words, of the lane that the run is about."""
    config, words = header.main["config"], []
    if config["dropped"] and config.get("period") != 1:
        words.append(f"{len(config['dropped'])} of {header.model['layers']} layers skipped")
        if config.get("drop_layers"):  # a list of layers takes the place of ratio and range
            config = config | {"drop_ratio": None, "layers": None}
        words += _said(SCHEDULE, config)
        words.append(f"corrections of rank {config['rank']}" if config.get("rank") else "no corrections")
    else:
        words.append("baseline")
    return [*words, *_said(RUN, header.sampling), f"seed {header.seed}"]


def _said(owner: str, values: dict[str, Any]) -> Iterator[str]:
    """The settings that the table has words for, as far as they are on."""
    for setting in settings_of(owner):
        value = values.get(setting.name)
        if setting.words and value is not None:
            yield setting.words.format(f"{value:g}" if isinstance(value, float) else setting.kind.write(value))
