"""Where a lane's time goes: a full step, what skipped layers and a screened head save, what repairs cost, and what is
spent outside the kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lora_drop.method.cost import step_bytes
from lora_drop.method.schedule import baseline_schedule
from lora_drop.run.report.report import LaneReport, Report, corrections_of, shape_of
from lora_drop.run.report.speed import makes_claims
from lora_drop.run.trace.records import BASELINE, JudgeRecord, StepRecord, number

DIGITS = 4


def parts_of(report: Report, bound: float | None) -> dict[str, Any] | None:
    """The parts of the main lane's time, in ms per token that stands.

    Args:
        bound: of the speedup; None if it has none.

    Returns:
        `{"unit", "parts": [{"id", "label", "ms"}], "total", "outside", "bound", "bound_with_repairs"}`. The first
        part, `full`, is the baseline's time per token; savings are negative; the parts add up to `total`. The saving
        of LoRA steps is split between layers and head by the bytes that each saves. `outside` has the time outside the
        kernels of both lanes, `{"full", "own"}`, and the part `outside` is their difference; None where the trace
        lacks it (then the other parts include it). `bound` is the least time by the bytes, and `bound_with_repairs`
        adds the measured cost of the repairs. None without a baseline, without decode steps, and for the reference
        decoder, whose times mean nothing.
    """
    header = report.trace.header
    if not report.has_baseline or not makes_claims(header):
        return None
    lane, base = report.lanes[report.main], report.lanes[BASELINE]
    total, full = lane.ms_per_token, base.ms_per_token
    if full is None or total is None or not math.isfinite(full + total):  # a file may hold any times
        return None
    config = header.config_of(report.main)
    outside = _outside(lane, base)
    kernels = full - outside[1] if outside else full  # of a full step

    def ms_of(steps: Sequence[StepRecord | JudgeRecord]) -> float:
        return sum(step.ms - (step.outside or 0.0 if outside else 0.0) for step in steps)

    saved = (ms_of(lane.lora) - len(lane.lora) * kernels) / lane.standing
    repairs = (ms_of(lane.full) - (lane.standing - len(lane.lora)) * kernels) / lane.standing
    head = saved * _head_share(report)
    parts = [("full", "a full step", full), ("layers", "skipped layers", saved - head)]
    if config.get("head") == "screened":
        parts.append(("head", "screened head", head))
    does_repair = config.get("refresh") == "repair"
    parts.append(("refreshes", "repairs" if does_repair else "full steps", repairs))
    if config.get("accept") or lane.rejected:
        parts.append(("taken_back", "rejected drafts", ms_of(lane.rejected) / lane.standing))
    if outside:
        parts.append(("outside", "outside the kernels", outside[0] - outside[1]))
    least = full / bound if bound else None
    return {
        "unit": "ms per kept token",
        "parts": [{"id": name, "label": label, "ms": number(ms, DIGITS)} for name, label, ms in parts],
        "total": number(total, DIGITS),
        "outside": outside and dict(zip(("own", "full"), (number(ms, DIGITS) for ms in outside), strict=True)),
        "bound": number(least, DIGITS),
        "bound_with_repairs": number(least + max(repairs, 0.0), DIGITS) if least and does_repair else None,
    }


def _outside(lane: LaneReport, base: LaneReport) -> tuple[float, float] | None:
    """Milliseconds per token that a lane, and the baseline, spent outside the kernels; None where a pass lacks it."""
    sums = []
    for side in (lane, base):
        passes = [record for record in side.passes if isinstance(record, StepRecord | JudgeRecord)]
        times = [record.outside for record in passes if isinstance(record, JudgeRecord) or record.step]
        if None in times:
            return None
        sums.append(sum(ms for ms in times if ms is not None) / side.standing)
    return sums[0], sums[1]


def _head_share(report: Report) -> float:
    """The screened head's share of the bytes that a LoRA step saves, at the middle of the answer."""
    header, lane = report.trace.header, report.lanes[report.main]
    shape, schedule = shape_of(header), lane.schedule
    corrections = corrections_of(dict(header.config_of(report.main)))
    if shape is None or schedule.head != "screened" or not corrections.head_rank:
        return 0.0
    where = max(1, len(lane.steps) // 2), header.prompt_tokens, 1
    whole = step_bytes(shape, baseline_schedule(shape.num_layers), *where)
    both, layers = (
        step_bytes(shape, variant, *where, corrections, lora=True)
        for variant in (schedule, dataclasses.replace(schedule, head="full"))
    )
    return (layers - both) / (whole - both) if whole > both else 0.0
