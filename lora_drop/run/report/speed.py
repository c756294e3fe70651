"""How fast a lane was beside another, with its spread, and what may be claimed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lora_drop.method.interval import HIGH, LOW, ratio_quantiles
from lora_drop.run.trace.records import Header

# From one full step to the next, so that each slow step counts exactly once: tokens that stand, and milliseconds.
Cycle = tuple[int, float]
Pair = tuple[Cycle, Cycle]  # of a lane, and of the baseline
Speed = Literal["faster", "slower", "noisy", "same"]

LEAST_CYCLES = 4  # fewer have no interval
LEAST_PROMPTS = 8  # from so many on, prompts are resampled: the cycles within one are not independent
NOISY = "timing is noisy"
GAIN = 1.03  # a speedup that is surely above it is one
SLOWER = 0.97  # one that is surely below it is a loss
NOISE = 0.1  # an interval wider than this share of the speedup says too little
BY_CHANCE = 1.03  # a speedup this far beyond the bound is noise: the lanes ran under different load


def makes_claims(header: Header) -> bool:
    """Whether a run's speed says something of LoRA-Drop: the reference decoder is slow for other reasons."""
    return header.device.get("decoder") != "reference" and not lacks_kernels(dict(header.device))


def lacks_kernels(device: Mapping[str, Any]) -> bool:
    """Whether torch decoded on a CPU, where the calls themselves take time: skipping layers may lose time there."""
    return device.get("type") == "cpu" and str(device.get("decoder")).startswith("static")


def quotient(over: float | None, under: float | None) -> float | None:
    """Divide two figures that come from clocks; None unless both are above 0, as a noisy or coarse clock's may be."""
    return over / under if over and under and over > 0 and under > 0 else None


def at_the_same_time(base: Sequence[Cycle], ours: Sequence[Cycle], view: str) -> list[Pair]:
    """Each cycle of a lane, with all that the baseline did meanwhile.

    Other load on the machine meets both sides of a pair alike. The lanes take turns: in a `race` the lane whose
    clock is behind steps next, so cycles at the same clock ran at the same time; in `lock-step`, those at the same
    token. What one lane did after the other had ended is left out.
    """
    axis = 0 if view == "lock-step" else 1
    pairs: list[Pair] = []
    ours_at, base_at, rest = 0.0, 0.0, iter(base)
    step = next(rest, None)
    for cycle in ours:
        if step is None:
            break
        ours_at += cycle[axis]
        tokens, ms = 0, 0.0
        while step is not None and base_at + step[axis] / 2 <= ours_at:
            tokens, ms, base_at = tokens + step[0], ms + step[1], base_at + step[axis]
            step = next(rest, None)
        pairs.append((cycle, (tokens, ms)))
    return pairs


def paired(prompts: Sequence[Sequence[Pair]]) -> tuple[float | None, list[float] | None]:
    """A lane's tokens per second over the baseline's, in what both did at the same time, with the 95% interval.

    Both are of one bootstrap, its median and [low, high], so the one lies within the other. What is resampled are
    whole prompts, or the pairs of cycles of fewer than `LEAST_PROMPTS`.

    Args:
        prompts: the pairs of `at_the_same_time` of each; too few have no interval, nor have those whose clock stood
            still.
    """
    pairs = [pair for of_prompt in prompts for pair in of_prompt]
    ours, base = (_summed(side) for side in zip(*pairs, strict=True)) if pairs else ((0, 0.0), (0, 0.0))
    speedup = quotient(quotient(*ours), quotient(*base))
    if speedup is None or len(pairs) < LEAST_CYCLES:
        return speedup, None
    if len(prompts) >= LEAST_PROMPTS:
        sums = (tuple(map(_summed, zip(*of_prompt, strict=True))) for of_prompt in prompts if of_prompt)
        pairs = [(ours, base) for ours, base in sums]
    low, median, high = (round(end, 4) for end in ratio_quantiles(*zip(*pairs, strict=True), at=(LOW, 0.5, HIGH)))
    return median, [low, high]


def _summed(cycles: Sequence[Cycle]) -> Cycle:
    return sum(tokens for tokens, _ in cycles), sum(ms for _, ms in cycles)


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
        return "no gain here"
    if not is_wide(speedup, interval):
        return None
    return f"{low:.1f}x to {high:.1f}x" if speed_of(speedup, interval) == "faster" else NOISY


def no_gain_reason(bound: float, accepted: float | None) -> str:
    """Why a setting does not gain where it was timed, as the end of a sentence.

    Args:
        accepted: share of its drafts that the full model accepted; None where none was verified.
    """
    if bound > GAIN:
        return f"its bound of {bound:.2f}× holds where steps wait for weights; here computing takes the time"
    if accepted is None:
        return f"its bound is {bound:.2f}×"
    return f"{1 - accepted:.0%} of its guesses are rejected, so its bound is {bound:.2f}×"


def labelled_speed(speedup: float | None, interval: Sequence[float] | None, bound: float | None) -> str | None:
    """A run's speedup, with a label where it is no headline; None without a speedup."""
    if speedup is None:
        return None
    text = f"{speedup:.2f}x"
    speed = speed_of(speedup, interval)
    if interval is None or speed is None:
        return f"{text} (too short to time)"
    if is_by_chance(speedup, bound):
        return f"{text} (noise: beyond the bound)"
    spread = f"{interval[0]:.2f}x to {interval[1]:.2f}x"
    if speed == "noisy":
        return f"{text} (noisy: {spread})"
    return f"{text} ({spread})" if is_wide(speedup, interval) else text
