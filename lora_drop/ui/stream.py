"""A run's records as few, small updates of the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lora_drop.run.trace.records import Record, StepRecord, Summary

MIN_INTERVAL, MAX_INTERVAL = 0.1, 0.4  # seconds between two updates of the page
FIRST_STEPS = 8  # the first words should come at once
HELD = 7  # steps that an update which has fallen due may wait, where they come fast
ENVELOPE = 330  # bytes that Gradio wraps around an update (measured)
STEP_BUDGET = 400  # bytes a step that the page may cost on the wire, with its share of the envelope


@dataclass
class UpdateInterval:
    """How long to gather records before an update: at most ten a second, fewer where an envelope a step would cost
    more than the budget of bytes."""

    started: float
    steps: int = 0
    sent: int = 0

    def interval(self, now: float) -> float:
        if self.steps < FIRST_STEPS:
            return MIN_INTERVAL
        rate = self.steps / max(now - self.started, 1e-3)
        room = max(STEP_BUDGET - self.sent / self.steps, 1)
        return min(max(ENVELOPE / (rate * room), MIN_INTERVAL), MAX_INTERVAL)

    def hold(self, updates: int, now: float) -> int:
        """Steps that the next update waits once it is due: in turn 0, 1, 2, ... up to what the least interval has."""
        fast = int(MIN_INTERVAL * self.steps / max(now - self.started, 1e-3))
        return updates % (min(HELD, fast) + 1) if self.steps >= FIRST_STEPS else 0


def batches(
    records: Iterator[Record],
    line: Callable[[Record], str],
    first: str = "",
    last: Callable[[], str] = lambda: "",
) -> Iterator[tuple[str, Record]]:
    """The text of a run so far, each time it is worth an update, with the last record it holds.

    Args:
        line: the text of a record.
        first, last: what the text begins with, and what each update ends with.

    A reader who draws on the decoding machine slows the steps right after an update. An audit takes long, so updates
    would mostly fall due at its end, before the same lane's step each time: some wait for a few steps more.
    """
    text, last_sent, due, record = first, 0.0, UpdateInterval(time.monotonic()), None
    updates, hold = 0, None  # steps that a due update still waits; None while none is due
    for record in records:
        new = line(record)
        text += new
        due.sent += len(new)
        if isinstance(record, StepRecord):
            due.steps = max(due.steps, record.step)
            hold = hold and hold - 1
        now = time.monotonic()
        if isinstance(record, Summary) or now - last_sent < due.interval(now):
            continue
        if hold is None:
            hold = due.hold(updates, now)
        if hold == 0:
            last_sent, hold = now, None
            updates += 1
            tail = last()
            due.sent += len(tail)
            text += tail
            yield text, record
    if record is not None:
        yield text + last(), record


def run_line(run_id: str, whole: bool = False) -> str:
    """The first line of a run's wire text: by it the page knows a new run from a longer text.

    Args:
        whole: nothing more will come, though the trace may have been cut short.
    """
    more = ',"whole":true' if whole else ""
    return f'{{"type":"run","id":"{run_id}"{more}}}\n'
