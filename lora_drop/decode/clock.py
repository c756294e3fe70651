"""Waiting for a device: a clock, and numbers on their way to the host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Milliseconds of a lane's work, in intervals from a `start` to its last `mark`.

    CUDA events on a GPU, which leave out what the host waits for; perf_counter on a CPU. `stop` is `mark` and `read`;
    between these two, more work may be launched that does not count.
    """

    def __init__(self, device: torch.device):
        self._device = device  # with two GPUs it need not be the current one
        self._intervals: list[list[Any]] = []  # of events or seconds

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def start(self) -> None:
        """Begin an interval."""
        now = self._now()
        self._intervals.append([now, now])

    def mark(self) -> None:
        """End the interval after the work launched so far, without waiting for it."""
        self._intervals[-1][1] = self._now()

    @contextlib.contextmanager
    def more(self) -> Iterator[None]:
        """Count the block's work too: on a GPU in another interval, on a CPU in the last one."""
        if self._device.type == "cuda":
            self.start()
        yield
        if self._device.type == "cuda":
            self.mark()

    def read(self) -> float:
        """Milliseconds of all intervals; waits for the device."""
        if self._device.type == "cuda":
            self._intervals[-1][1].synchronize()
            ms: float = sum(start.elapsed_time(end) for start, end in self._intervals)
        else:
            ms = 1000 * sum(end - start for start, end in self._intervals)
        return ms

    def stop(self) -> float:
        self.mark()
        return self.read()


class Fetched:
    """Tensors on their way to the host. `read` waits for them, and for no work launched after them."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._copies, self._done = list(tensors), None
        device = tensors[0].device
        if device.type == "cuda":
            self._copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
            for copy, tensor in zip(self._copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(device))

    def read(self) -> list[list[Any]]:
        """Numbers of each tensor, flat."""
        if self._done is not None:
            self._done.synchronize()
        return [copy.flatten().tolist() for copy in self._copies]
