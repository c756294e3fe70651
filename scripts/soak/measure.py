"""Measure the server's process: memory, threads, file descriptors and temporary files."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.soak.app import Waited

LATE_THREADS = 1  # a worker that libraries start once, on first use; a leak grows with the visits
AHEAD = 2  # most runs of one other address before a waiting run: the run under way, and one turn
PEAK = 500_000  # most kB that the memory may grow by during the visits
REST = 12  # seconds until the server's idle worker threads end (anyio's 10, and a margin)


@dataclass(frozen=True)
class Held:
    """Resources of the server's process."""

    threads: int
    files: int  # descriptors
    uploads: int  # in Gradio's temporary folder
    temporary: list[str]  # any other temporary file


class Server:
    """The server's process, measured from outside.

    Args:
        pid: the process.
        temporary: its temporary folder.
    """

    def __init__(self, pid: int, temporary: Path):
        self.pid, self.temporary = pid, temporary
        self.memory: list[tuple[float, int]] = []  # minutes, kB

    def resident(self) -> int:
        """The server's resident memory in kB."""
        return int(re.findall(r"VmRSS:\s+(\d+)", self._proc("status").read_text())[0])

    def _proc(self, name: str) -> Path:
        return Path("/proc") / str(self.pid) / name

    async def watch(self) -> None:
        """Record the memory once a second, until cancelled."""
        started = time.monotonic()
        while True:
            self.memory.append(((time.monotonic() - started) / 60, self.resident()))
            await asyncio.sleep(1)

    async def held(self) -> Held:
        """Count the resources once threads and descriptors have settled, or after `REST` seconds."""
        counts = self.counts()
        seen: list[tuple[int, int]] = []
        while counts not in seen[-2:] and len(seen) < REST:  # the last connections close a little later
            seen.append(counts)
            await asyncio.sleep(1)
            counts = self.counts()
        files = [path for path in self.temporary.rglob("*") if path.is_file()]
        uploads = [path for path in files if path.relative_to(self.temporary).parts[0] == "gradio"]
        others = sorted(path.name for path in files if path not in uploads)
        return Held(*counts, len(uploads), others)

    def counts(self) -> tuple[int, int]:
        """The server's threads and file descriptors."""
        return len(os.listdir(self._proc("task"))), len(os.listdir(self._proc("fd")))


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares slope of points, and its standard error; NaN for fewer than three."""
    n = len(points)
    if n < 3:
        return float("nan"), float("nan")
    mean_x, mean_y = (sum(values) / n for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in points)
    return rise, (rest / (n - 2) / spread) ** 0.5


def within_peak(base: int, memory: list[tuple[float, int]]) -> list[str]:
    """Failures: a line if the memory rose by more than `PEAK` above `base` kB."""
    peak = max((kb for _, kb in memory), default=base)
    return [f"the memory rose from {base} to {peak} kB"] if peak > base + PEAK else []


def most_ahead(runs: list[Waited]) -> int:
    """The most runs that a single other address began while a run waited, minus the turns of the run's address.

    Runs of an address begin in the order of asking. Earlier runs of the waiting run's address may have taken turns
    meanwhile, also if their visitor is gone: all count that were not seen to begin before the waiting run was queued.
    """
    most = 0
    for run in (run for run in runs if run.began < math.inf):
        earlier = [other for other in runs if other.address == run.address and other.joined < run.joined]
        gone = max((other.joined for other in earlier if other.began < run.joined), default=-math.inf)
        turns = sum(other.joined > gone for other in earlier)
        before = Counter(other.address for other in runs if run.joined < other.began < run.began)
        del before[run.address]
        most = max(most, *(count - turns for count in before.values()), 0)
    return most


def hold_still(before: Held, after: Held) -> list[str]:
    """Failures: a line for each resource of which the server holds more afterwards than before."""
    left = [
        f"left over: {getattr(after, name)} {name}, {getattr(before, name)} before"
        for name, late in (("threads", LATE_THREADS), ("files", 0))
        if getattr(after, name) > getattr(before, name) + late
    ]
    if after.temporary:
        left.append(f"left over: temporary files {after.temporary[:5]}")
    return left
