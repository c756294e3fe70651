"""Timed runs: lanes on one device, a step each in turn, by their own clocks; and the figures of several such runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing

from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import speedup_interval
from lora_drop.run.request import LanePlan, Plan, Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import Header, StepRecord


def timed_request(config: LoraDropConfig, prompt: str, new_tokens: int, ignore_eos: bool = True) -> Request:
    """A greedy request with nothing beside the lanes: the lanes take turns, and no audit runs."""
    return Request(prompt, config, new_tokens, view="lock-step", audit=False, ignore_eos=ignore_eos)


def time_lanes(
    loaded: LoadedModel,
    lanes: dict[str, LanePlan],
    prompt_ids: list[int],
    new_tokens: int,
    ignore_eos: bool = True,
    should_stop: Callable[[Report], bool] = lambda report: False,
) -> Report:
    """Run any lanes on a prompt's tokens.

    Args:
        ignore_eos: every lane writes `new_tokens`; else a stop token ends it.
        should_stop: called after each step with the report so far, which is returned once it is true.

    Raises:
        LoraDropError: there is no memory for the lanes.
    """
    request = timed_request(LoraDropConfig(), "(tokens)", new_tokens, ignore_eos)
    with closing(run(loaded, request, checked=Plan(lanes, prompt_ids, []))) as records:
        header = next(records)
        assert isinstance(header, Header)
        report = Report(header)
        for record in records:
            report.add(record)
            if should_stop(report):
                break
    return report


def rate_of(runs: Sequence[Report], lane: str) -> float:
    """Tokens that stand per second of decoding, over all runs."""
    lanes = [report.lanes[lane] for report in runs]
    ms = sum(one.decode_ms for one in lanes)
    return 1000 * sum(one.kept for one in lanes) / ms if ms else math.nan


def interval_of(runs: Sequence[Report], lane: str) -> list[float] | None:
    """95% interval of a lane's speedup over the baseline, [low, high], from the refresh cycles of all runs."""
    return speedup_interval([pair for report in runs for pair in report.pairs(lane)])


def bound_of(runs: Sequence[Report], lane: str) -> float:
    """The mean of a lane's bounds: the baseline's bytes over the lane's, all its passes included."""
    return statistics.mean(report.lanes[lane].bound or 1.0 for report in runs)


def acceptance_of(runs: Sequence[Report], lane: str) -> float | None:
    """Share of the drafts of all runs that the full model accepted; None without a draft that it verified."""
    lanes = [report.lanes[lane] for report in runs if report.lanes[lane].schedule.verifies]
    drafts = sum(one.drafts for one in lanes)
    return sum(one.accepted for one in lanes) / drafts if drafts else None


def median_ms(runs: Sequence[Report], lane: str) -> dict[str, float]:
    """The median milliseconds of each kind of decode step."""
    kinds: dict[str, list[float]] = {}
    for report in runs:
        for one in report.lanes[lane].passes:
            if isinstance(one, StepRecord) and one.step:
                kinds.setdefault(one.kind, []).append(one.ms)
    return {kind: statistics.median(ms) for kind, ms in kinds.items()}
