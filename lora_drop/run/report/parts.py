"""Where a lane's time goes: the full model's step, what skipped layers and a screened head save, what repairs cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lora_drop.method.cost import ModelShape, step_bytes
from lora_drop.method.schedule import baseline_schedule
from lora_drop.run.report.figures import correction_of, schedule_of, shape_of
from lora_drop.run.report.speed import makes_claims
from lora_drop.run.trace.records import BASELINE, JudgeRecord, StepRecord, number
from lora_drop.run.trace.trace import Trace

UNIT = "ms per kept token"
DIGITS = 4


class Times:
    """What a lane's passes took, in ms, by what they were for. Prefill is none of them.

    Attributes:
        lora, taken_back: times of the LoRA steps whose tokens stand, and of those whose tokens do not.
        full: times of the full steps, each with as many rows as the record says, and of the last pass over drafts.
        kept: decode tokens that stand.
    """

    def __init__(self, trace: Trace, lane: str):
        self.lora: list[float] = []
        self.taken_back: list[float] = []
        self.full: list[float] = []
        self.kept = max(0, len(trace.steps[lane]) - 1)
        for one in trace.passes[lane]:
            if isinstance(one, JudgeRecord):
                self.full.append(one.ms)
            elif isinstance(one, StepRecord) and one.step:
                times = self.full if one.kind != "lora" else self.lora if trace.stands(one) else self.taken_back
                times.append(one.ms)

    @property
    def per_token(self) -> float | None:
        """Milliseconds for each token that stands; None where none was decoded, or no clock ran."""
        total = sum(self.lora) + sum(self.taken_back) + sum(self.full)
        return total / self.kept if self.kept and total > 0 else None


def parts_of(trace: Trace, bound: float | None) -> dict[str, Any] | None:
    """The parts of the time of the lane that the run is about, in ms for each token that stands.

    Args:
        bound: of the speedup, where it is known.

    Returns:
        `{"unit", "parts": [{"id", "label", "ms"}], "total", "bound", "bound_with_repairs"}`. The first part, `full`,
        is the baseline's time for a token; what is saved is negative; all of them add up to `total`. What LoRA steps
        save is split between layers and head by the bytes that each saves. `bound` is the least that the bytes allow,
        and `bound_with_repairs` the same with what repairs were measured to cost. None without a baseline, without
        decode steps, and of the reference decoder, whose times say nothing.
    """
    lane = trace.header.main["id"]
    if BASELINE not in trace.steps or lane == BASELINE or not makes_claims(trace.header):
        return None
    full, times = Times(trace, BASELINE).per_token, Times(trace, lane)
    total = times.per_token
    if full is None or total is None or not math.isfinite(full + total):  # a file may hold any times
        return None
    config = trace.header.config_of(lane)
    saved = (sum(times.lora) - len(times.lora) * full) / times.kept
    repairs = (sum(times.full) - (times.kept - len(times.lora)) * full) / times.kept
    shape = shape_of(trace.header)
    head = saved * _head_share(trace, lane, shape) if shape else 0.0
    found = [("full", "a full step", full), ("layers", "skipped layers", saved - head)]
    if config.get("head") == "screened":
        found.append(("head", "screened head", head))
    does_repair = config.get("refresh") == "repair"
    found.append(("refreshes", "repairs" if does_repair else "full steps", repairs))
    if config.get("accept") or times.taken_back:
        found.append(("taken_back", "tokens taken back", sum(times.taken_back) / times.kept))
    least = full / bound if bound else None
    return {
        "unit": UNIT,
        "parts": [{"id": name, "label": label, "ms": number(ms, DIGITS)} for name, label, ms in found],
        "total": number(total, DIGITS),
        "bound": least and number(least, DIGITS),
        "bound_with_repairs": number(least + max(repairs, 0.0), DIGITS) if least and does_repair else None,
    }


def _head_share(trace: Trace, lane: str, shape: ModelShape) -> float:
    """The screened head's share of the bytes that a LoRA step saves, at the middle of the answer."""
    header, config = trace.header, trace.header.config_of(lane)
    schedule, (rank, corrected, extras) = schedule_of(header, config), correction_of(config)
    if schedule.head != "screened" or not extras.head_rank:
        return 0.0
    where = max(1, len(trace.steps[lane]) // 2), header.prompt_tokens, 1
    whole = step_bytes(shape, baseline_schedule(shape.num_layers), *where)
    both, layers = (
        step_bytes(shape, one, *where, rank, corrected, lora=True, extras=extras)
        for one in (schedule, dataclasses.replace(schedule, head="full"))
    )
    return (layers - both) / (whole - both) if whole > both else 0.0
