"""A clock that waits for the device."""

from __future__ import annotations

import time

import torch


class Clock:
    """Milliseconds between `start` and `stop` of one lane: CUDA events on a GPU, perf_counter on a CPU."""

    def __init__(self, device: torch.device):
        self._device = device  # its own stream: with two GPUs the current one need not be this one's
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._started = 0.0

    def start(self) -> None:
        if self._events:
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._started = time.perf_counter()

    def stop(self) -> float:
        if self._events:
            self._events[1].record(torch.cuda.current_stream(self._device))
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1])
        return 1000 * (time.perf_counter() - self._started)
