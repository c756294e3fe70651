"""Report of a run: every figure of it, counted record by record.

The page's live figures, the summary, the verdict, `why`, `parts` and the measurements of `evaluation` read them here.
A report can be asked at any time: while the run goes on, at its end, or of a trace that was cut short.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from typing import Any

from lora_drop.method.cost import BytesRead, Corrections, ModelShape
from lora_drop.method.quality import collapse_at
from lora_drop.method.schedule import DRAFTS, Schedule, average_period
from lora_drop.run.report.speed import (
    Cycle,
    Pair,
    at_the_same_time,
    is_by_chance,
    makes_claims,
    paired,
    quotient,
)
from lora_drop.run.trace.records import (
    BASELINE,
    TOGETHER,
    AuditRecord,
    Header,
    JudgeRecord,
    LaneHeader,
    Record,
    RewindRecord,
    StepRecord,
    Summary,
)
from lora_drop.run.trace.trace import PassRecord, Trace


def schedule_of(header: Header, config: dict[str, Any]) -> Schedule:
    """A lane's schedule, from its settings."""
    names = {field.name for field in dataclasses.fields(Schedule)} - {"dropped", "num_layers"}
    rules = {"period": 1} | {name: config[name] for name in names & config.keys()}
    return Schedule(num_layers=header.model["layers"], dropped=tuple(sorted(config.get("dropped") or ())), **rules)


def corrections_of(config: dict[str, Any]) -> Corrections:
    """Sizes of a lane's corrections, from its settings."""
    corrected = config.get("corrected")
    layers = None if corrected is None else frozenset(corrected)  # it is asked for each layer of each step
    return Corrections(config.get("rank") or 0, layers, **config.get("extras") or {})


def shape_of(header: Header) -> ModelShape | None:
    """The model's sizes; None where a header has none (an old trace)."""
    with suppress(TypeError, ValueError):  # a header may hold any object
        sizes: dict[str, Any] = dict(header.model.get("shape") or {})
        return ModelShape(**sizes)
    return None


class Quality:
    """Means of the audits on the baseline's text, by kind of step."""

    GROUPS = ("lora_steps", "full_steps", "all_steps")
    NAMES = ("kl", "nll_gap", "top1_agreement")

    def __init__(self) -> None:
        self._sums: dict[Any, float] = defaultdict(float)  # by (group, name)
        self._counts: dict[Any, int] = defaultdict(int)  # by (group, name), and by group

    def add(self, audit: AuditRecord) -> None:
        """Take an audit. The token of the prefill counts in `all_steps` only."""
        groups = {"prefill": (), "lora": ("lora_steps",)}.get(str(audit.kind), ("full_steps",))
        values: dict[str, float | None] = dict(zip(self.NAMES, (audit.kl, audit.nll_gap, audit.agrees), strict=True))
        for group in (*groups, "all_steps"):
            self._counts[group] += 1
            for name, value in values.items():
                if value is not None:
                    self._sums[group, name] += value
                    self._counts[group, name] += 1

    def mean(self, group: str, name: str) -> float | None:
        """One mean; None without a step."""
        count = self._counts[group, name]
        return self._sums[group, name] / count if count else None

    def to_dict(self) -> dict[str, Any] | None:
        """`{"lora_steps": {"count", "kl", "nll_gap", "top1_agreement"}, "full_steps": {same}, "all_steps": {same}}`,
        nats per token; None without any audit."""
        if not self._counts["all_steps"]:
            return None
        means = {group: {name: self.mean(group, name) for name in self.NAMES} for group in self.GROUPS}
        return {group: {"count": self._counts[group], **means[group]} for group in self.GROUPS}


class LaneReport:
    """Figures of one lane. Prefill counts in none of its times.

    Attributes:
        schedule: as the header has it.
        steps: whose tokens stand, prefill's first.
        passes: all that ran, those for rejected drafts included.
        decode_ms: time of all decode passes.
        full: the full steps, repairs and the last verification included.
        rejected: the LoRA steps, and drafts without a pass, whose tokens were rejected.
        drafts: tokens of such steps that the full model has verified.
        accepted: those that it accepted.
        quality: on the baseline's text.
    """

    def __init__(self, header: Header, lane: LaneHeader):
        config: dict[str, Any] = dict(lane["config"])
        self.schedule = schedule_of(header, config)
        self.steps: list[StepRecord] = []
        self.passes: list[PassRecord] = []
        self.decode_ms = 0.0
        self.full: list[StepRecord | JudgeRecord] = []
        self.rejected: list[StepRecord] = []
        self.drafts = self.accepted = self._pending = 0
        self.quality = Quality()
        self._ends: list[Cycle] = []  # tokens and time up to the end of each full pass, or of each step that prunes
        self._layer_runs = self._layer_rows = 0  # passes over a layer's weights, and the tokens that these computed
        self._regrets: dict[int, float] = {}  # by step, of tokens that stand
        self._is_sampled = bool(header.sampling.get("temperature"))
        shape = shape_of(header)
        corrections = corrections_of(config)
        self._read = BytesRead(shape, self.schedule, header.prompt_tokens, corrections) if shape else None
        self._bytes_of = 0  # passes whose bytes are counted
        self._itemsize = (header.model.get("kv_bytes_per_token") or 0) / (shape.kv_per_token or 1) if shape else 0.0

    def add(self, record: PassRecord) -> None:
        """Take a pass of the lane."""
        self.passes.append(record)
        if isinstance(record, RewindRecord):
            gone = self.steps[record.to + 1 :]
            self._verify(len(gone))
            self.rejected += [step for step in gone if step.kind in DRAFTS]
            for step in gone:
                self._regrets.pop(step.step, None)
            del self.steps[record.to + 1 :]
            return
        # The layers that a repair runs for each of its rows; those below are exact and run for its newest row alone.
        again = self.schedule.num_layers - self.schedule.first_skipped
        if isinstance(record, StepRecord):
            self.steps.append(record)
            if record.step == 0:
                return
            self._layer_runs += sum(record.active)
            self._layer_rows += sum(record.active) + (record.rows - 1) * again
        else:
            self._layer_runs += again
            self._layer_rows += record.rows * again
        self.decode_ms += record.ms
        if isinstance(record, StepRecord) and record.kind in DRAFTS:
            self._pending += 1
            if self.schedule.prunes:  # no full pass ever ends a cycle
                self._ends.append((self.standing, self.decode_ms))
            return
        self._verify(record.rows - record.kept if isinstance(record, JudgeRecord) else 0)
        self.full.append(record)
        self._ends.append((self.standing, self.decode_ms))

    def _verify(self, rejected: int) -> None:
        self.drafts += self._pending
        self.accepted += self._pending - rejected
        self._pending = 0

    def audit(self, record: AuditRecord) -> None:
        """Take an audit of the lane."""
        if record.audit == "quality":
            self.quality.add(record)
        elif record.regret is not None and not self._is_sampled:
            self._regrets[record.step] = record.regret

    @property
    def standing(self) -> int:
        """Decode tokens that stand."""
        return max(0, len(self.steps) - 1)

    @property
    def verified(self) -> int:
        """How many of `steps` have tokens that can no longer be rejected."""
        return len(self.steps) - (self._pending if self.schedule.verifies else 0)

    @property
    def lora(self) -> list[StepRecord]:
        """The LoRA steps, and drafts without a pass, whose tokens stand."""
        return [step for step in self.steps if step.kind in DRAFTS]

    @property
    def ms_per_token(self) -> float | None:
        """Milliseconds for each token that stands; None where none was decoded, or no clock ran."""
        return self.decode_ms / self.standing if self.standing and self.decode_ms > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that stand per second of decoding; None where `ms_per_token` is."""
        return 1000 / self.ms_per_token if self.ms_per_token else None

    @property
    def cycles(self) -> list[Cycle]:
        """Tokens that stand and milliseconds of each refresh cycle, the last one however far it came."""
        ends = [(0, 0.0), *self._ends]
        if self.standing != ends[-1][0]:
            ends.append((self.standing, self.decode_ms))
        return [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(ends)]

    def rate_to(self, tokens: int) -> float | None:
        """Tokens per millisecond up to the end of the refresh cycle that reaches so many tokens; None where no clock
        ran."""
        at = bisect_left(self._ends, (tokens, 0.0))
        reached, ms = self._ends[at] if at < len(self._ends) else (self.standing, self.decode_ms)
        return quotient(reached, ms)

    @property
    def bound(self) -> float | None:
        """The baseline's bytes over the lane's; None before the first step, or where the header has no sizes."""
        if self.schedule.is_baseline:
            return 1.0
        return None if self._read is None else self._bytes_read(self._read).bound

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes that the passes read, by the formula, for each token that stands; None where `bound` is."""
        if not self._read or not self.standing:
            return None
        return self._itemsize * self._bytes_read(self._read).activations / self.standing

    @property
    def layer_runs(self) -> float | None:
        """Passes over a layer's weights, of however many rows, for each token that stands."""
        return self._layer_runs / self.standing if self.standing else None

    @property
    def layer_rows(self) -> float | None:
        """Tokens that a layer computed, by all layers, for each token that stands: the full model has its number of
        layers, and repairs and rejected tokens add to it."""
        return self._layer_rows / self.standing if self.standing else None

    def _bytes_read(self, read: BytesRead) -> BytesRead:
        """`read` with all passes so far."""
        for record in self.passes[self._bytes_of :]:
            if isinstance(record, RewindRecord):
                read.rewind(record.to)
            elif isinstance(record, JudgeRecord):
                read.verify()
            elif record.step:
                read.step(record.step, record.kind)
        self._bytes_of = len(self.passes)
        return read

    @property
    def acceptance(self) -> float | None:
        """Share of the drafts that the full model accepted; None where it verifies none."""
        return self.accepted / self.drafts if self.schedule.verifies and self.drafts else None

    @property
    def refreshes(self) -> int:
        """Decode steps that were full."""
        return sum(step.kind == "refresh" for step in self.steps)

    @property
    def refresh_counts(self) -> dict[str, Any]:
        """`refreshes`, and `average_period`: decode steps per refresh, None without any."""
        average = average_period(self.standing, self.refreshes)
        return {"refreshes": self.refreshes, "average_period": average and round(average, 4)}

    @property
    def skipped_share(self) -> float | None:
        """Share of the full model's layer reads, for the tokens that stand, that the lane did without.

        A layer read is one pass over the layer's weights, of however many rows; rejected tokens' count too. None
        without a decode step.
        """
        return None if self.layer_runs is None else 1 - self.layer_runs / self.schedule.num_layers

    @property
    def loss(self) -> float | None:
        """Quality loss of the lane's own text: mean regret of the tokens that stand, nats per token, how much less
        likely each is than the full model's favourite. The prefill's token is that favourite, and has no audit. None
        without an audit, and where tokens are sampled."""
        return sum(self._regrets.values()) / len({0, *self._regrets}) if self._regrets else None

    def text_ids(self, ended: str | None) -> list[int]:
        """Tokens of the text.

        Args:
            ended: how the lane ended, as the summary has it: a stop token is no part of the text.
        """
        ids = [step.token_id for step in self.steps]
        return ids[:-1] if ended == "stop" else ids

    def loop_at(self, ended: str | None) -> int | None:
        """Token where the loop begins that the text ends in; None if it does not. `ended` as in `text_ids`."""
        return collapse_at(self.text_ids(ended))


class Report:
    """Figures of a run: of each lane by itself, and beside the baseline (without one, the first lane).

    Attributes:
        trace: the records so far.
        lanes: by id.
        main: id of the lane that the run is about.
    """

    def __init__(self, header: Header):
        self.trace = Trace(header)
        self.main = header.main["id"]
        self.lanes = {lane["id"]: LaneReport(header, lane) for lane in header.lanes}
        self._base = BASELINE if BASELINE in self.lanes else next(iter(self.lanes))
        self._same = dict.fromkeys(self.lanes, 0)  # leading tokens that were compared and are the baseline's

    @classmethod
    def of(cls, trace: Trace) -> Report:
        """The report of a trace, whole or cut short."""
        report = cls(trace.header)
        for record in trace.records():
            report._count(record)
        report.trace = trace
        return report

    def add(self, record: Record) -> None:
        """Take a record after the header.

        Raises:
            LoraDropError: see `Trace.add`.
        """
        self.trace.add(record)
        self._count(record)

    def _count(self, record: Record) -> None:
        if isinstance(record, AuditRecord):
            self.lanes[record.lane].audit(record)
        elif not isinstance(record, Header | Summary):
            self.lanes[record.lane].add(record)
            if isinstance(record, RewindRecord):
                for lane in self.lanes if record.lane == self._base else [record.lane]:
                    self._same[lane] = min(self._same[lane], record.to + 1)

    @property
    def has_baseline(self) -> bool:
        """Whether the lane that the run is about has the full model beside it."""
        return BASELINE in self.lanes and self.main != BASELINE

    def first_difference(self, lane: str) -> int | None:
        """Index of a lane's first token that differs from the baseline's; None if none does."""
        base, ours = self.lanes[self._base].steps, self.lanes[lane].steps
        at, both = self._same[lane], min(len(base), len(ours))
        while at < both and base[at].token_id == ours[at].token_id:
            at += 1
        self._same[lane] = at
        return at if at < both else None

    def speedup(self, lane: str) -> float | None:
        """A lane's tokens per second over the baseline's, both up to the tokens of the shorter one, in whole cycles.

        None of the baseline, where either has no decode step or no time, and of the reference decoder.
        """
        base, ours = self.lanes[self._base], self.lanes[lane]
        shorter = min(base.standing, ours.standing)
        if ours is base or not shorter or not makes_claims(self.trace.header):
            return None
        return quotient(ours.rate_to(shorter), base.rate_to(shorter))

    def speedup_interval(self, lane: str) -> list[float] | None:
        """95% interval of `speedup`, [low, high], from a bootstrap over pairs of refresh cycles; None where it has
        none."""
        return None if self.speedup(lane) is None else paired([self.pairs(lane)])[1]

    def pairs(self, lane: str) -> list[Pair]:
        """A lane's refresh cycles, each with the baseline's at the same time."""
        view = str(self.trace.header.sampling.get("view", "race"))
        return at_the_same_time(self.lanes[self._base].cycles, self.lanes[lane].cycles, view)

    def kv_saved(self, lane: str) -> float | None:
        """Share of the baseline's K/V bytes that a lane saves, at the last step that both have."""
        base, ours = self.lanes[self._base], self.lanes[lane]
        last = min(len(base.steps), len(ours.steps)) - 1
        if ours is base or last < 0 or not base.steps[last].kv_bytes:
            return None
        return 1 - ours.steps[last].kv_bytes / base.steps[last].kv_bytes

    def beside(self, lane: str) -> dict[str, Any]:
        """A lane beside the baseline so far: the figures of `TOGETHER`, and `accepted`."""
        ours = self.lanes[lane]
        return {
            "speedup": self.speedup(lane),
            "bound": ours.bound,
            "kv_saved": self.kv_saved(lane),
            "first_divergence": self.first_difference(lane),
            "top1_agreement": ours.quality.mean("lora_steps", "top1_agreement"),
            "accepted": ours.acceptance,
        }

    def figures(self) -> dict[str, Any]:
        """Figures so far: `main`, those of `TOGETHER`, `quality_loss` and `accepted` for it, `by_chance`, and `lanes`:
        the speed and first difference of each. Where there is a summary they are the summary's.
        """
        main, summary = self.lanes[self.main], self.trace.summary
        speeds: dict[str, Any] = {name: lane.tokens_per_second for name, lane in self.lanes.items()}
        together: dict[str, Any]
        if summary:
            speeds = {name: lane.get("tokens_per_second") for name, lane in summary.lanes.items()}
            together = {name: getattr(summary, name) for name in (*TOGETHER, "accepted")}
            together["bound"] = 1.0 if main.schedule.is_baseline else summary.bound
        else:
            together = self.beside(self.main)
        lanes = {
            name: {"tokens_per_second": speeds[name], "differs": self.first_difference(name)} for name in self.lanes
        }
        return {
            "main": self.main,
            **together,
            "quality_loss": main.loss,
            # Before the end both lanes have run a few steps only: their speedup may be any number.
            "by_chance": bool(summary) and is_by_chance(together["speedup"], together["bound"]),
            "lanes": lanes,
        }
