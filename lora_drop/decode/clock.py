"""Waiting for a device: a clock, and numbers on their way to the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Milliseconds of a lane's work from `start` to `stop`: CUDA events on a GPU, perf_counter on a CPU.

    `stop` is `mark` and `read`; between these two, more work may be launched that does not count.
    """

    def __init__(self, device: torch.device):
        self._device = device  # with two GPUs it need not be the current one
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._started = self._ended = 0.0

    def start(self) -> None:
        if self._events:
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._started = time.perf_counter()

    def mark(self) -> None:
        """End the interval after the work launched so far, without waiting for it."""
        if self._events:
            self._events[1].record(torch.cuda.current_stream(self._device))
        self._ended = time.perf_counter()

    def read(self) -> float:
        """Milliseconds from `start` to `mark`; waits for the device."""
        if self._events:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1])
        return 1000 * (self._ended - self._started)

    def stop(self) -> float:
        self.mark()
        return self.read()


class Fetched:
    """Tensors on their way to the host. `read` waits for them, and for no work launched after them."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._copies, self._done = list(tensors), None
        device = tensors[0].device
        if device.type == "cuda":
            self._copies = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]
            for copy, one in zip(self._copies, tensors, strict=True):
                copy.copy_(one, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(device))

    def read(self) -> list[list[Any]]:
        """Numbers of each tensor, flat."""
        if self._done is not None:
            self._done.synchronize()
        return [one.flatten().tolist() for one in self._copies]
