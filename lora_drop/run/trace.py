"""The record of a run: the one source of every picture, the replay, the exports and the tests.

A trace is JSON Lines: a header, then a line for each step of a lane and for each audited step as they happen, then a
summary (`records.py`). `Trace` gathers the records of a run, `read_trace` those of a file. A trace cut short still
reads; whatever is broken before its last line is an error that names the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import average_period
from lora_drop.run.records import AuditRecord, Header, Record, StepRecord, Summary, read_line

MAX_TRACE_BYTES = 64 * 2**20  # about 100,000 steps


@dataclass
class Trace:
    """A run's records, gathered: what figures and reports read."""

    header: Header
    steps: dict[str, list[StepRecord]] = field(default_factory=dict)
    audits: dict[str, dict[int, AuditRecord]] = field(default_factory=dict)
    summary: Summary | None = None

    def __post_init__(self):
        for lane in self.header.lanes:
            self.steps.setdefault(lane["id"], [])
            self.audits.setdefault(lane["id"], {})

    def add(self, record: Record) -> None:
        """Append a record.

        Raises:
            LoraDropError: the record names an unknown lane, skips a step, or does not fit the header.
        """
        if isinstance(record, Summary):
            if set(record.lanes) != set(self.steps):
                raise LoraDropError("the summary has other lanes than the header.")
            self.summary = record
            return
        if isinstance(record, Header):
            raise LoraDropError("a trace has one header, this is a second one.")
        if record.lane not in self.steps:
            raise LoraDropError(f"the header knows no lane {record.lane!r}.")
        if isinstance(record, StepRecord):
            steps = self.steps[record.lane]
            if record.step != len(steps):
                raise LoraDropError(f"lane {record.lane!r} goes from step {len(steps) - 1} to step {record.step}.")
            if len(record.active) != self.header.model["layers"]:
                raise LoraDropError(f"step {record.step} has {len(record.active)} layers, the header another number.")
            steps.append(record)
            return
        if record.step >= len(self.steps[record.lane]):
            raise LoraDropError(f"step {record.step} is audited before it ran.")
        dropped = next(lane["config"]["dropped"] for lane in self.header.lanes if lane["id"] == record.lane)
        if not len(record.drift) == len(record.cosine) == len(dropped):
            raise LoraDropError(f"the audit of step {record.step} has other layers than lane {record.lane!r} skips.")
        self.audits[record.lane][record.step] = record

    def text(self, lane: str) -> str:
        """The text that a lane wrote."""
        return "".join(step.text for step in self.steps[lane])

    def token_ids(self, lane: str) -> list[int]:
        """The tokens that a lane wrote, the stop token included."""
        return [step.token_id for step in self.steps[lane]]

    def records(self) -> Iterator[Record]:
        """All records, lane by lane: the order within a lane is kept."""
        yield self.header
        for lane, steps in self.steps.items():
            yield from steps
            yield from self.audits[lane].values()
        if self.summary:
            yield self.summary


def gather(records: Iterable[Record]) -> Trace:
    """A `Trace` of a run's records, the header first."""
    records = iter(records)
    header = next(records)
    assert isinstance(header, Header)
    trace = Trace(header)
    for record in records:
        trace.add(record)
    return trace


def top1_agreement(trace: Trace, lane: str) -> float | None:
    """Share of the audited LoRA steps at which the lane and the full model have the same argmax; None without any."""
    kinds = [step.kind for step in trace.steps[lane]]
    agrees = [audit.agrees for step, audit in trace.audits[lane].items() if kinds[step] == "lora"]
    return sum(agrees) / len(agrees) if agrees else None


def refresh_counts(trace: Trace, lane: str) -> dict[str, Any]:
    """How many decode steps of a lane were full: `refreshes`, and `average_period`, None without any."""
    decoded = trace.steps[lane][1:]
    count = sum(step.kind == "refresh" for step in decoded)
    average = average_period(len(decoded), count)
    return {"refreshes": count, "average_period": average and round(average, 4)}


def first_divergence(one: list[int], other: list[int]) -> int | None:
    """0-based index of the first differing token; None if one list starts with the other."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


def read_trace(path: str | Path) -> Trace:
    """Read a trace file, also one that was cut short.

    Raises:
        LoraDropError: there is no such file, it is too large, or a line before the last is not a trace's.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TRACE_BYTES + 1)  # asked for its size, a device or a pipe would say 0
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise LoraDropError(f"cannot read the trace {path.name}: {getattr(error, 'strerror', error)}.") from None
    if len(raw) > MAX_TRACE_BYTES:
        raise LoraDropError(f"{path.name} is larger than {MAX_TRACE_BYTES // 2**20} MiB, too large to read.")
    return parse_trace(raw, path.name)


def parse_trace(raw: bytes, name: str = "the trace") -> Trace:
    """Read a trace from its bytes; `name` is for the messages.

    Raises:
        LoraDropError: see `read_trace`.
    """
    lines = raw.split(b"\n")
    tail = lines.pop()  # b"" if the last line is complete
    trace: Trace | None = None
    for i, line in enumerate([*lines, tail], start=1):
        if not line.strip():
            continue
        cut = i > len(lines)
        try:
            record = read_line(line)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            if cut and trace is not None:
                break  # the run was ended while it wrote this line
            reason = error if isinstance(error, LoraDropError) else "this is not a line of a LoRA-Drop trace."
            raise LoraDropError(f"{name}, line {i}: {reason}") from None
        if trace is None:
            if not isinstance(record, Header):
                raise LoraDropError(f"{name}, line {i}: a trace starts with its header.")
            trace = Trace(record)
            continue
        try:
            trace.add(record)
        except LoraDropError as error:
            raise LoraDropError(f"{name}, line {i}: {error}") from None
    if trace is None:
        raise LoraDropError(f"{name} is empty: it holds no header.")
    return trace
