"""Two lanes on one device: whose turn is it?"""

from __future__ import annotations

from collections.abc import Iterator

from lora_drop.decode.lane import Lane, LaneEvent


def take_turns(lanes: dict[str, Lane], view: str) -> Iterator[tuple[str, LaneEvent]]:
    """Steps of all lanes until each has ended, one lane at a time.

    Args:
        view: `race` gives the next step to the lane whose own clock is behind, so that a faster lane is seen pulling
            ahead in real proportion; `lock-step` goes by step number, side by side.
    """
    while running := [(name, lane) for name, lane in lanes.items() if not lane.ended]:
        if view == "race":
            name, lane = min(running, key=lambda item: item[1].clock_ms)
        else:
            name, lane = min(running, key=lambda item: item[1].decode_steps + (item[1].prefill_ms > 0))
        yield name, next(lane)
