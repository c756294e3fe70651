"""Runs beside each other: what was set otherwise, what came of it, and their curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.settings import settings_of
from lora_drop.run.report.words import setting_words
from lora_drop.run.trace.records import TOGETHER
from lora_drop.run.trace.trace import Trace

MOST = 8  # runs that are compared at once
OTHERS = ("prompt", "model", "number type", "device", "decoder")  # what a run has beside its settings


def compared(traces: Mapping[str, Trace]) -> dict[str, Any]:
    """Runs by their ids, in this order.

    Returns:
        `{"runs": [{"id", "name", "main", "lanes", "words", "verdict", "figures"}], "settings": [{"name", "values"}],
        "curves": {"drift": [...], "clock": [...]}}`. `main` is the id of the lane that a run is about, `lanes` have
        `id` and `label`. `figures` are those of the summary; `settings` those that are not the same
        in all runs, as texts, a value a run; `curves` have a list a run: by decode step of the lane that the run is
        about its mean drift (None where it was not audited), and the milliseconds on its clock so far.
    """
    told = [_settings(trace) for trace in traces.values()]
    names = list(dict.fromkeys(name for one in told for name in one))
    rows = [{"name": name, "values": [one.get(name, "") for one in told]} for name in names]
    return {
        "runs": [_about(run_id, trace) for run_id, trace in traces.items()],
        "settings": [row for row in rows if len(set(row["values"])) > 1],
        "curves": {
            "drift": [_drift(trace) for trace in traces.values()],
            "clock": [_clock(trace) for trace in traces.values()],
        },
    }


def _about(run_id: str, trace: Trace) -> dict[str, Any]:
    summary = trace.summary
    return {
        "id": run_id,
        "name": trace.header.prompt,
        "main": trace.header.main["id"],
        "lanes": [{"id": lane["id"], "label": lane["label"]} for lane in trace.header.lanes],
        "words": ", ".join(setting_words(trace.header)),
        "verdict": summary.verdict["text"] if summary and summary.verdict else None,
        "figures": {name: getattr(summary, name, None) for name in TOGETHER},
    }


def _settings(trace: Trace) -> dict[str, str]:
    """A run's settings as texts, by their labels."""
    header = trace.header
    run = {**header.sampling, "seed": header.seed}
    found = {}
    for one in settings_of(SCHEDULE, RUN):
        told = header.main["config"] if one.of == SCHEDULE else run
        if one.name in told:
            value = told[one.name]
            found[one.name.replace("_", " ")] = "default" if value is None else one.kind.write(value)
    device = {**header.device}
    others = (header.prompt, header.model["id"], header.model["dtype"], header.device["name"], device.get("decoder"))
    return found | {name: str(value) for name, value in zip(OTHERS, others, strict=True)}


def _drift(trace: Trace) -> list[float | None]:
    lane = trace.header.main["id"]
    audits = [trace.audits[lane].get(step.step) for step in trace.steps[lane][1:]]
    means = [audit.mean_drift if audit else None for audit in audits]
    return [mean and round(mean, 4) for mean in means]


def _clock(trace: Trace) -> list[float]:
    """Of all passes, those for tokens that were taken back included; prefill left out."""
    times: list[float] = []
    spent = 0.0
    for one in trace.passes[trace.header.main["id"]]:
        if one.type == "rewind":
            del times[one.to :]
        elif one.type == "judge":
            spent += one.ms
            times[-1:] = [round(spent, 2)]
        elif one.step:
            spent += one.ms
            times.append(round(spent, 2))
    return times
