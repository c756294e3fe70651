"""A clock that waits for the device."""

from __future__ import annotations

import time

import torch


class Clock:
    """Milliseconds between `start` and `stop` of one lane: CUDA events on a GPU, perf_counter on a CPU.

    `stop` is `mark` and `read`: between these more may be asked of the device.
    """

    def __init__(self, device: torch.device):
        self._device = device  # its own stream: with two GPUs the current one need not be this one's
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._started = self._ended = 0.0

    def start(self) -> None:
        if self._events:
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._started = time.perf_counter()

    def mark(self) -> None:
        """What was asked of the device so far is what counts; nothing waits for it."""
        if self._events:
            self._events[1].record(torch.cuda.current_stream(self._device))
        self._ended = time.perf_counter()

    def read(self) -> float:
        """Milliseconds from `start` to `mark`."""
        if self._events:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1])
        return 1000 * (self._ended - self._started)

    def stop(self) -> float:
        self.mark()
        return self.read()
