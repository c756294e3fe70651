"""The record of a run: the one source of every picture, the replay, the exports and the tests.

A trace is JSON Lines: a header, then a line for each step of a lane and for each audited step as they happen, then a
summary (`records.py`). `Trace` gathers the records of a run, `read_trace` those of a file. A trace cut short still
reads; anything broken before the last line is an error that names the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from lora_drop.errors import LoraDropError
from lora_drop.run.trace.records import (
    BASELINE,
    AuditRecord,
    Header,
    JudgeRecord,
    Record,
    RewindRecord,
    StepRecord,
    Summary,
    read_line,
)

PassRecord = StepRecord | RewindRecord | JudgeRecord
MAX_TRACE_BYTES = 64 * 2**20  # about 100,000 steps
MAX_RECORDS = 10**6  # in a trace


@dataclass(repr=False)
class Trace:
    """A run's records, gathered by lane."""

    # A notebook's drawing of a trace. `run/show.py` sets it: the figures read reports, which read traces.
    drawing: ClassVar[Callable[[Trace], str] | None] = None

    header: Header
    steps: dict[str, list[StepRecord]] = field(default_factory=dict)  # those whose tokens stand
    passes: dict[str, list[PassRecord]] = field(default_factory=dict)  # all that ran, in order
    audits: dict[str, dict[int, AuditRecord]] = field(default_factory=dict)  # of the lane's own tokens
    quality: dict[str, dict[int, AuditRecord]] = field(default_factory=dict)  # of the baseline's
    summary: Summary | None = None

    def __post_init__(self) -> None:
        for lane in self.header.lanes:
            self.passes.setdefault(lane["id"], list(self.steps.setdefault(lane["id"], [])))
            self.audits.setdefault(lane["id"], {})
            self.quality.setdefault(lane["id"], {})

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
            raise LoraDropError(f"the header has no lane {record.lane!r}.")
        steps = self.steps[record.lane]
        if isinstance(record, AuditRecord):
            self._add_audit(record)
            return
        if isinstance(record, StepRecord):
            if record.step != len(steps):
                raise LoraDropError(f"lane {record.lane!r} goes from step {len(steps) - 1} to step {record.step}.")
            if len(record.active) != self.header.model["layers"]:
                raise LoraDropError(f"step {record.step} has {len(record.active)} layers, the header another number.")
            steps.append(record)
        elif isinstance(record, RewindRecord):
            if record.to >= len(steps) - 1:
                raise LoraDropError(f"lane {record.lane!r} goes back to step {record.to}, from no later one.")
            for step in range(record.to + 1, len(steps)):
                self.audits[record.lane].pop(step, None)
            del steps[record.to + 1 :]
        self.passes[record.lane].append(record)

    def _add_audit(self, record: AuditRecord) -> None:
        """Raises LoraDropError: the audit does not fit the header, or its step has not run."""
        if record.audit == "quality":
            if record.step >= len(self.steps.get(BASELINE, ())):
                raise LoraDropError(f"step {record.step} of the baseline is audited before it ran.")
            self.quality[record.lane][record.step] = record
            return
        if record.step >= len(self.steps[record.lane]):
            raise LoraDropError(f"step {record.step} is audited before it ran.")
        dropped = self.header.config_of(record.lane)["dropped"]
        if not len(record.drift) == len(record.cosine) == len(dropped):
            raise LoraDropError(f"the audit of step {record.step} has other layers than lane {record.lane!r} skips.")
        self.audits[record.lane][record.step] = record

    def __repr__(self) -> str:
        tokens = ", ".join(f"{lane} {len(steps)} tokens" for lane, steps in self.steps.items())
        cut = "" if self.summary else ", cut short"
        return f"Trace({self.header.prompt[:60]!r}, {self.header.model['id']}: {tokens}{cut})"

    def _repr_html_(self) -> str | None:
        draw = type(self).drawing
        return draw(self) if draw else None

    def stands(self, step: StepRecord) -> bool:
        """True if a step of `passes` is also one of `steps`."""
        steps = self.steps[step.lane]
        return step.step < len(steps) and steps[step.step] is step

    def clock(self, lane: str) -> list[float]:
        """Milliseconds of decoding after each token that stands, prefill's left out. Rejected drafts' time counts."""
        times: list[float] = []
        spent = 0.0
        for record in self.passes[lane]:
            if record.type == "rewind":
                del times[record.to :]
            elif record.type == "judge":
                spent += record.ms
                times[-1:] = [spent]
            elif record.step:
                spent += record.ms
                times.append(spent)
        return times

    def text(self, lane: str) -> str:
        """The text that a lane wrote."""
        return "".join(step.text for step in self.steps[lane])

    def thoughts(self, lane: str) -> int:
        """Tokens of a lane's thoughts."""
        return sum(step.thought for step in self.steps[lane])

    def answer(self, lane: str) -> str:
        """The text that a lane wrote, without its thoughts."""
        return "".join(step.text for step in self.steps[lane] if not step.thought)

    def token_ids(self, lane: str) -> list[int]:
        """The tokens that a lane wrote, the stop token included."""
        return [step.token_id for step in self.steps[lane]]

    def records(self) -> Iterator[Record]:
        """All records, lane by lane, in order within a lane."""
        yield self.header
        for lane, passes in self.passes.items():
            yield from passes
            yield from self.audits[lane].values()
        for audits in self.quality.values():
            yield from audits.values()
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


def first_divergence(left: list[int], right: list[int]) -> int | None:
    """0-based index of the first differing token; None if one list starts with the other."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)


def read_trace(path: str | Path) -> Trace:
    """Read a trace file, also one that was cut short.

    Raises:
        LoraDropError: the file cannot be read, is too large, or is broken before its last line.
    """
    path = Path(path)
    return parse_trace(read_file(path), path.name)


def read_file(path: Path) -> bytes:
    """The bytes of a trace file. Raises LoraDropError if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TRACE_BYTES + 1)  # a device or a pipe reports a size of 0
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise LoraDropError(f"cannot read the trace {path.name}: {getattr(error, 'strerror', error)}.") from None
    if len(raw) > MAX_TRACE_BYTES:
        raise LoraDropError(f"{path.name} is larger than {MAX_TRACE_BYTES // 2**20} MiB, too large to read.")
    return raw


def parse_trace(raw: bytes, name: str = "the trace") -> Trace:
    """Read a trace from its bytes; `name` is for the messages.

    Raises:
        LoraDropError: see `read_trace`.
    """
    trace: Trace | None = None
    records = 0
    for i, line in enumerate(BytesIO(raw), start=1):
        if not line.strip():
            continue
        cut = not line.endswith(b"\n")
        if (records := records + 1) > MAX_RECORDS:
            raise LoraDropError(f"{name}, line {i}: a trace has at most {MAX_RECORDS:,} records.")
        try:
            record = read_line(line)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            if cut and trace is not None:
                break  # the run ended while it wrote this line
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
