"""A run's figures so far, from its records alone: of one that still runs, that has ended, or that was cut short.

The page gets them as lines of their own beside the records: its scripts draw them and compute none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from lora_drop.method.cost import BytesRead, Extras, ModelShape
from lora_drop.method.schedule import Schedule
from lora_drop.run.report.speed import makes_claims
from lora_drop.run.trace.records import (
    TOGETHER,
    AuditRecord,
    Header,
    JudgeRecord,
    Record,
    RewindRecord,
    StepRecord,
    Summary,
    number,
)
from lora_drop.run.trace.trace import Trace

# A measured speedup this far beyond the bound was met by chance: the lanes' steps met different loads.
BY_CHANCE = 1.03
SO_FAR = (*TOGETHER, "quality_loss", "accepted")  # of the lane that the run is about
FIGURES = 200  # what their line for the page begins with
NO_SHAPE = ModelShape(0, 0, 0, 0, 0, 0, 0, False)  # of a header that has none: nothing is counted by it


def schedule_of(header: Header, config: dict[str, Any]) -> Schedule:
    """A lane's schedule, from its settings."""
    names = {field.name for field in dataclasses.fields(Schedule)} - {"dropped", "num_layers"}
    rules = {"period": 1} | {name: config[name] for name in names & config.keys()}
    return Schedule(num_layers=header.model["layers"], dropped=tuple(sorted(config.get("dropped") or ())), **rules)


def correction_of(config: dict[str, Any]) -> tuple[int, Collection[int] | None, Extras]:
    """A lane's correction as the counts of bytes take it: its rank, the layers that have one, its further parts."""
    return config.get("rank") or 0, config.get("corrected"), Extras(**config.get("extras") or {})


def shape_of(header: Header) -> ModelShape | None:
    """The model's sizes; None where a header has none (an old trace)."""
    with suppress(TypeError, ValueError):  # a header may hold any object
        sizes: dict[str, Any] = dict(header.model.get("shape") or {})
        return ModelShape(**sizes)
    return None


def bytes_read(trace: Trace, lane: str, shape: ModelShape) -> BytesRead:
    """What a lane's passes have read."""
    header, config = trace.header, trace.header.config_of(lane)
    read = BytesRead(shape, schedule_of(header, config), header.prompt_tokens, *correction_of(config))
    for record in trace.passes[lane]:
        _take(read, record)
    return read


def _take(read: BytesRead, record: StepRecord | RewindRecord | JudgeRecord) -> None:
    if isinstance(record, RewindRecord):
        read.rewind(record.to)
    elif isinstance(record, JudgeRecord):
        read.judge()
    elif record.step:
        read.step(record.step, lora=record.kind == "lora")


class _Lane:
    """What is counted of a lane as its records come."""

    def __init__(self, config: dict[str, Any], header: Header, shape: ModelShape | None):
        self.schedule = schedule_of(header, config)
        self.read = BytesRead(shape or NO_SHAPE, self.schedule, header.prompt_tokens, *correction_of(config))
        self.knows_bytes = shape is not None
        self.tokens: list[int] = []
        self.kv_bytes: list[int] = []
        self.decode_ms = 0.0
        self.audited = self.agreed = 0
        # What is kept of drafts is judged as it was written: on the baseline's answer nothing could be taken back.
        self.loss_of = "own" if self.schedule.verifies else "answer"
        self.is_sampled = bool(header.sampling.get("temperature"))
        self.losses: dict[int, float] = {}  # by step
        self.pending = self.drafts = self.accepted = 0

    def add(self, record: StepRecord | RewindRecord | JudgeRecord) -> None:
        if self.knows_bytes:
            _take(self.read, record)
        if isinstance(record, RewindRecord):
            self._judge(len(self.tokens) - 1 - record.to)
            if self.loss_of == "own":
                for step in range(record.to + 1, len(self.tokens)):
                    self.losses.pop(step, None)
            del self.tokens[record.to + 1 :], self.kv_bytes[record.to + 1 :]
        elif isinstance(record, JudgeRecord):
            self._judge(record.rows - record.kept)
            self.decode_ms += record.ms
        else:
            if record.kind == "lora":
                self.pending += 1
            else:
                self._judge(0)
            self.tokens.append(record.token_id)
            self.kv_bytes.append(record.kv_bytes)
            self.decode_ms += record.ms if record.step else 0.0

    def _judge(self, taken_back: int) -> None:
        self.drafts += self.pending
        self.accepted += self.pending - taken_back
        self.pending = 0

    def audit(self, record: AuditRecord) -> None:
        loss = record.kl if record.audit == "quality" else None if self.is_sampled else record.regret
        if loss is not None and (record.audit == "quality") == (self.loss_of == "answer"):
            self.losses[record.step] = loss
        if record.kind == "lora":
            self.audited += 1
            self.agreed += record.agrees

    @property
    def bound(self) -> float | None:
        return 1.0 if self.schedule.is_baseline else self.read.bound

    @property
    def loss(self) -> float | None:
        """Quality loss, nats per token: KL(full || lane) on the baseline's answer; of a lane that verifies its drafts
        the regret of the tokens that stand, which says nothing where they are sampled."""
        return sum(self.losses.values()) / len(self.losses) if self.losses else None

    @property
    def tokens_per_second(self) -> float | None:
        steps = len(self.tokens) - 1
        return 1000 * steps / self.decode_ms if steps > 0 and self.decode_ms > 0 else None


class Figures:
    """The figures of a run, a record at a time.

    Args:
        header: the run's first record; one without a shape (an old trace) has no bound on the way.
        counts_bytes: false leaves the bound to the summary.
    """

    def __init__(self, header: Header, counts_bytes: bool = True):
        self._main = header.main["id"]
        self._summary: Summary | None = None
        self._claims = makes_claims(header)
        shape = shape_of(header) if counts_bytes else None
        self._lanes = {lane["id"]: _Lane(lane["config"], header, shape) for lane in header.lanes}
        self._differs: dict[str, int | None] = dict.fromkeys(self._lanes)
        self._compared = dict.fromkeys(self._lanes, 0)

    def add(self, record: Record) -> None:
        """Take a record after the header."""
        if isinstance(record, StepRecord | RewindRecord | JudgeRecord):
            self._lanes[record.lane].add(record)
            if isinstance(record, RewindRecord):
                self._compared[record.lane] = min(self._compared[record.lane], record.to + 1)
                differs = self._differs[record.lane]
                self._differs[record.lane] = None if differs is None or differs > record.to else differs
        elif isinstance(record, AuditRecord):
            self._lanes[record.lane].audit(record)
        elif isinstance(record, Summary):
            self._summary = record

    def now(self) -> dict[str, Any]:
        """The figures: `main`, those of `SO_FAR` for it, `by_chance`, and each lane's speed and first difference.

        Once there is a summary they are the summary's.
        """
        first, main = next(iter(self._lanes.values())), self._lanes[self._main]
        self._compare(first.tokens)
        speeds = {name: lane.tokens_per_second for name, lane in self._lanes.items()}
        speedup = saved = None
        if main is not first:
            one, two = first.tokens_per_second, main.tokens_per_second
            speedup = two / one if one and two and self._claims else None
            shorter = min(len(first.tokens), len(main.tokens)) - 1
            if shorter >= 0 and first.kv_bytes[shorter]:
                saved = 1 - main.kv_bytes[shorter] / first.kv_bytes[shorter]
        together = {
            "speedup": speedup,
            "bound": main.bound,
            "kv_saved": saved,
            "first_divergence": self._differs[self._main],
            "top1_agreement": main.agreed / main.audited if main.audited else None,
            "quality_loss": main.loss,
            "accepted": main.accepted / main.drafts if main.schedule.verifies and main.drafts else None,
        }
        by_chance = False
        if self._summary:
            speeds = {name: lane.get("tokens_per_second") for name, lane in self._summary.lanes.items()}
            told = {name: getattr(self._summary, name) for name in (*TOGETHER, "accepted")}
            together |= told | {"bound": together["bound"] if main.schedule.is_baseline else told["bound"]}
            bound = together["bound"]
            by_chance = bool(together["speedup"] and bound and together["speedup"] > BY_CHANCE * bound)
        lanes = {name: {"tokens_per_second": speeds[name], "differs": self._differs[name]} for name in self._lanes}
        return {"main": self._main, **together, "by_chance": by_chance, "lanes": lanes}

    def loss(self, lane: str) -> tuple[float | None, str | None]:
        """A lane's quality loss, and on which text: the baseline's `answer` or its `own`; None where not known."""
        found = self._lanes[lane]
        return found.loss, found.loss_of if found.losses else None

    def line(self) -> str:
        """The figures as a line for the page, newline included, rounded to what it shows: `[200, *SO_FAR, by_chance,
        [[tokens_per_second, differs] a lane]]`."""
        found = self.now()
        together = [number(v, 4) if isinstance(v := found[name], float) else v for name in SO_FAR]
        lanes = [
            [number(lane["tokens_per_second"] or 0, 2) or None, lane["differs"]] for lane in found["lanes"].values()
        ]
        values = [FIGURES, *together, int(found["by_chance"]), lanes]
        return json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"

    def _compare(self, first: list[int]) -> None:
        """Each lane's first token that differs from the first lane's, looked for in what is new."""
        for name, lane in list(self._lanes.items())[1:]:
            both = min(len(first), len(lane.tokens))
            at = self._compared[name]
            while self._differs[name] is None and at < both:
                if first[at] != lane.tokens[at]:
                    self._differs[name] = at
                at += 1
            self._compared[name] = at
