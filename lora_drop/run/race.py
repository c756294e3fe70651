"""Turns on one device: of the lanes of a run, and of runs that share the device."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar, cast

from lora_drop.decode.lane import Lane, LaneEvent

T = TypeVar("T")


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


@cache
def _owner(device: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"owner-of-{device}")


def owned(device: str, work: Iterator[T]) -> Generator[T, None, None]:
    """Make every step of an iterator in the one thread that owns a device, whichever thread asks for it.

    A server asks from one of many threads that come and go. On a GPU each would get its own workspaces of the
    libraries, and one could call CUDA in the middle of another's capture. Two iterators take turns, a step each.
    """
    done = object()
    owner = _owner(device)
    try:
        while (item := owner.submit(next, work, done).result()) is not done:
            yield cast(T, item)
    finally:
        if isinstance(work, Generator):
            owner.submit(work.close).result()
