"""Turns on one device: of the lanes of a run, and of runs that share the device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar, cast

import torch

from lora_drop.decode.lane import Lane, LaneEvent
from lora_drop.models.place import on_zero_gpu

T = TypeVar("T")


def take_turns(lanes: dict[str, Lane], view: str) -> Iterator[tuple[str, LaneEvent]]:
    """Steps of all lanes until each has ended, one lane at a time.

    Args:
        view: `race` gives the next step to the lane whose clock is behind, so that a faster lane is seen pulling
            ahead in real proportion; `lock-step` goes by step number, side by side.
    """
    while running := [(name, lane) for name, lane in lanes.items() if not lane.ended]:
        if view == "race":
            name, lane = min(running, key=lambda item: item[1].clock_ms)
        else:
            name, lane = min(running, key=lambda item: item[1].decode_steps + (item[1].prefill_ms > 0))
        yield name, next(lane)


@cache
def _owner(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=name)


def by_owner(device: torch.device, work: Callable[[], T]) -> T:
    """Call a function in the one thread that owns a GPU, whichever thread asks for it.

    A server asks from one of many threads that come and go. Each would get separate workspaces of the libraries, and
    one could call CUDA in the middle of another's capture. On a CPU, and on ZeroGPU, which lends the card to the
    thread that asks, the function is called right here.
    """
    name = f"owner-of-{device}"
    if device.type != "cuda" or on_zero_gpu() or threading.current_thread().name == f"{name}_0":
        return work()
    return _owner(name).submit(work).result()


def owned(device: torch.device, work: Iterator[T]) -> Generator[T, None, None]:
    """Make every step of an iterator in its device's thread (`by_owner`). Two iterators take turns, a step each."""
    done = object()
    try:
        while (item := by_owner(device, partial(next, work, done))) is not done:
            yield cast(T, item)
    finally:
        if isinstance(work, Generator):
            by_owner(device, work.close)
