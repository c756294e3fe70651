"""Lanes on one prompt's tokens, a step each in turn: what their clocks say."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.lane import Lane, LaneEvent
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import Decoder, Rewind, Verified
from lora_drop.errors import LoraDropError
from lora_drop.method.cost import BytesRead, ModelShape
from lora_drop.models.load import LoadedModel
from lora_drop.run.report.speed import Cycle, speedup_interval
from lora_drop.run.request import LanePlan
from lora_drop.run.trace.records import BASELINE, JudgeRecord, RewindRecord, StepRecord

Pass = StepRecord | RewindRecord | JudgeRecord


@dataclass(frozen=True)
class Ended:
    """What is kept of a lane that ran to its end; its buffers are free for the next round. Names as in `Lane`."""

    tokens: list[int]
    decode_steps: int
    prefill_ms: float
    decode_ms: float
    tokens_per_second: float | None
    drafts: int
    accepted: int
    prompt_tokens: int
    kv_bytes: int
    kv_allocated_bytes: int

    @classmethod
    def of(cls, lane: Lane) -> Ended:
        """Read it off the lane."""
        kv, prompt_tokens = lane.state.kv, lane.state.position - lane.decode_steps
        names = ("tokens", "decode_steps", "prefill_ms", "decode_ms", "tokens_per_second", "drafts", "accepted")
        same: dict[str, Any] = {name: getattr(lane, name) for name in names}
        sizes: dict[str, Any] = {"kv_bytes": kv.nbytes, "kv_allocated_bytes": kv.allocated_bytes}
        return cls(**same, prompt_tokens=prompt_tokens, **sizes)


@dataclass(frozen=True)
class Timed:
    """Lanes that ran to their ends, and the records of each one's events."""

    lanes: dict[str, Ended]
    passes: dict[str, list[Pass]]

    def bound(self, name: str, plan: LanePlan, shape: ModelShape) -> float:
        """The baseline's bytes over a lane's, all its passes included."""
        corrected = plan.bank.layers if plan.bank else None
        prompt_tokens = self.lanes[name].prompt_tokens
        read = BytesRead(shape, plan.schedule, prompt_tokens, plan.rank, corrected, plan.extras(shape))
        for one in self.passes[name]:
            if isinstance(one, RewindRecord):
                read.rewind(one.to)
            elif isinstance(one, JudgeRecord):
                read.judge()
            elif one.step:
                read.step(one.step, one.kind == "lora")
        return read.bound or 1.0


def rate_of(runs: Sequence[Timed], name: str) -> float:
    """Tokens that stand a second of decoding, of a lane over all runs."""
    lanes = [run.lanes[name] for run in runs]
    return 1000 * sum(lane.decode_steps for lane in lanes) / sum(lane.decode_ms for lane in lanes)


def interval_of(runs: Sequence[Timed], name: str) -> list[float] | None:
    """The speedup's interval of a lane over the baseline, from the refresh cycles of all runs."""
    one, two = ([cycle for run in runs for cycle in _cycles(run.passes[lane])] for lane in (BASELINE, name))
    return speedup_interval(one, two)


def _cycles(passes: Sequence[Pass]) -> list[Cycle]:
    """A lane's decode passes, cut after each full one."""
    ends = [(0, 0.0)]
    tokens, ms = 0, 0.0
    for one in passes:
        if isinstance(one, RewindRecord):
            tokens = one.to
            continue
        if isinstance(one, StepRecord):
            tokens = one.step
        ms += one.ms if isinstance(one, JudgeRecord) or one.step else 0.0
        if isinstance(one, JudgeRecord) or one.kind == "refresh":
            ends.append((tokens, ms))
    if tokens != ends[-1][0]:
        ends.append((tokens, ms))
    return [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(ends)]


def median_ms(passes: Sequence[Pass]) -> dict[str, float]:
    """The median milliseconds of each kind of decode step."""
    kinds: dict[str, list[float]] = {}
    for one in passes:
        if isinstance(one, StepRecord) and one.step:
            kinds.setdefault(one.kind, []).append(one.ms)
    return {kind: statistics.median(ms) for kind, ms in kinds.items()}


def time_lanes(
    loaded: LoadedModel,
    decoder: Decoder,
    prompt: Tensor,
    plans: dict[str, LanePlan],
    new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Timed:
    """Run lanes greedily, a step each in turn, each turn begun by another lane.

    Args:
        prompt: (1, P).
        stop_ids: tokens that end a text; none runs to `new_tokens`.

    Raises:
        LoraDropError: there is no memory for the lanes.
    """
    try:
        read = decoder.read_prompt(prompt)
        lanes = {
            name: Lane(decoder, read, plan.schedule, plan.bank, Sampling(), new_tokens, stop_ids)
            for name, plan in plans.items()
        }
        passes: dict[str, list[Pass]] = {name: [] for name in lanes}
        order = list(lanes)
        while any(not lane.ended for lane in lanes.values()):
            for name in order:
                if not lanes[name].ended:
                    passes[name].append(_record(name, next(lanes[name])))
            order = order[1:] + order[:1]
    except torch.OutOfMemoryError:
        raise LoraDropError(
            f"{loaded.id} does not fit into the memory of {loaded.device} with {prompt.shape[1]} + {new_tokens} "
            "tokens: lower them, or take a smaller model."
        ) from None
    return Timed({name: Ended.of(lane) for name, lane in lanes.items()}, passes)


def _record(name: str, event: LaneEvent) -> Pass:
    """An event's record without its text."""
    if isinstance(event, Rewind):
        return RewindRecord(name, event.to)
    if isinstance(event, Verified):
        return JudgeRecord(name, event.rows, event.ms, event.accepted)
    known = {field.name for field in dataclasses.fields(StepRecord)} & {f.name for f in dataclasses.fields(event)}
    return StepRecord(lane=name, text="", **{field: getattr(event, field) for field in known})
