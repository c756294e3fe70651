"""Group a run's records into few, small updates of the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lora_drop.run.trace.records import Record, StepRecord, Summary

MIN_INTERVAL, MAX_INTERVAL = 0.1, 0.4  # seconds between two updates of the page
FIRST_STEPS = 8  # the first words should come at once
HELD = 7  # steps that a due update may wait where steps come fast
ENVELOPE = 330  # bytes that Gradio adds to an update (measured)
STEP_BUDGET = 400  # bytes on the wire for each step, with its share of the envelope


@dataclass
class UpdateInterval:
    """Time to gather records before an update: at most ten updates a second, fewer where envelopes cost too much.

    Args:
        started: start of the run, on the monotonic clock in seconds.
        steps: steps of the furthest lane so far.
        sent: bytes of the lines sent so far.
    """

    started: float
    steps: int = 0
    sent: int = 0

    def interval(self, now: float) -> float:
        """Seconds between two updates."""
        if self.steps < FIRST_STEPS:
            return MIN_INTERVAL
        rate = self.steps / max(now - self.started, 1e-3)
        room = max(STEP_BUDGET - self.sent / self.steps, 1)
        return min(max(ENVELOPE / (rate * room), MIN_INTERVAL), MAX_INTERVAL)

    def hold(self, updates: int, now: float) -> int:
        """Steps that a due update waits: in turn 0, 1, 2, ... up to the steps in the shortest interval."""
        fast = int(MIN_INTERVAL * self.steps / max(now - self.started, 1e-3))
        return updates % (min(HELD, fast) + 1) if self.steps >= FIRST_STEPS else 0


def batches(
    records: Iterator[Record],
    line: Callable[[Record], str],
    first: str = "",
    last: Callable[[], str] = lambda: "",
) -> Iterator[tuple[str, Record]]:
    """Yield the run's text so far at each update, with its last record.

    On one machine the browser's drawing slows the steps right after an update. Audits are slow, so most updates would
    fall due after an audit, before the same lane's step each time. So some updates wait for a few more steps.

    Args:
        line: returns the text of a record.
        first: start of the text.
        last: returns text that each update ends with.
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
    """First line of a run's wire text, by which the page tells a new run from a longer text.

    Args:
        whole: the text is complete, though the trace may have been cut short.
    """
    more = ',"whole":true' if whole else ""
    return f'{{"type":"run","id":"{run_id}"{more}}}\n'
