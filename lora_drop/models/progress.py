"""What is said on stderr while the bundled model is prepared: one line redrawn on a terminal, a few in a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO


def say(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    print(text, end=end, file=stream or sys.stderr, flush=True)


class Progress:
    """A download's progress: one line that redraws itself on a terminal, a line every 10% in a log."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.live = label, total, sys.stderr.isatty()
        self.shown = -1
        self.show(0)

    def show(self, done: int) -> None:
        percent = min(100, 100 * done // self.total)
        percent -= 0 if self.live else percent % 10
        if percent <= self.shown:
            return
        self.shown = percent
        bar = "#" * (percent // 4)
        text = f"{self.label} [{bar:<25}] {percent:3d}% of {self.total / 1e6:.0f} MB"
        say(f"\r{text}" if self.live else text, end="" if self.live else "\n")

    def close(self, done: bool) -> None:
        if done:
            self.show(self.total)
        if self.live:
            say("")


@contextlib.contextmanager
def ticking(label: str) -> Iterator[None]:
    """Say what is going on while the body runs: seconds counted up on a terminal, a first and a last line in a log."""
    stream, start, stop = sys.stderr, time.monotonic(), threading.Event()  # the body may redirect sys.stderr
    live = stream.isatty()

    def tick() -> None:
        while not stop.wait(1.0):
            say(f"\r{label}: {time.monotonic() - start:.0f} s", end="", stream=stream)

    thread = threading.Thread(target=tick, daemon=True)
    say(f"{label} ...", end="" if live else "\n", stream=stream)
    if live:
        thread.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        stop.set()
        if live:
            thread.join()
        say(f"{chr(13) if live else ''}{label}: {outcome} in {time.monotonic() - start:.0f} s", stream=stream)
