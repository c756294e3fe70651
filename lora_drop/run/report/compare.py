"""Runs side by side: the settings that differ, their figures, and their curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.quality import CRITERION, WORDS
from lora_drop.method.settings import settings_of
from lora_drop.run.report.speed import labelled_speed
from lora_drop.run.report.words import setting_words
from lora_drop.run.trace.records import TOGETHER, number
from lora_drop.run.trace.trace import Trace

MOST = 8  # runs that are compared at once
OTHERS = ("prompt", "model", "number type", "device", "decoder")  # compared like settings


def side_of(trace: Trace) -> dict[str, Any]:
    """One run's part in `compared`."""
    clock = [round(ms, 2) for ms in trace.clock(trace.header.main["id"])]
    return {"run": _about(trace), "settings": _settings(trace), "drift": _drift(trace), "clock": clock}


def compared(sides: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Runs by their ids, in this order, each as `side_of` has it.

    Returns:
        `{"runs": [{"id", "name", "main", "lanes", "words", "verdict", "reads", "speed", "figures"}], "criterion",
        "settings": [{"name", "values"}], "curves": {"drift": [...], "clock": [...]}}`. `main` is the id of the lane
        that a run is about, `lanes` have `id` and `label`, `reads` says how its text reads, by the criterion. `speed`
        is the run's speedup, with a label where it is noisy. `figures` are the summary's. `settings` are those that
        differ between the runs, as texts, one value per run. `curves` have one list per run, by decode step of its
        main lane: the mean drift (None where it was not audited), and the milliseconds on its clock so far.
    """
    settings = [side["settings"] for side in sides.values()]
    names = list(dict.fromkeys(name for texts in settings for name in texts))
    rows = [{"name": name, "values": [texts.get(name, "") for texts in settings]} for name in names]
    return {
        "runs": [{"id": run_id, **side["run"]} for run_id, side in sides.items()],
        "criterion": CRITERION,
        "settings": [row for row in rows if len(set(row["values"])) > 1],
        "curves": {name: [side[name] for side in sides.values()] for name in ("drift", "clock")},
    }


def _about(trace: Trace) -> dict[str, Any]:
    summary = trace.summary
    verdict = summary.verdict if summary else None
    reads = verdict["facts"].get("reads") if verdict else None
    return {
        "name": trace.header.prompt,
        "main": trace.header.main["id"],
        "lanes": [{"id": lane["id"], "label": lane["label"]} for lane in trace.header.lanes],
        "words": ", ".join(setting_words(trace.header)),
        "verdict": verdict["text"] if verdict else None,
        "reads": next((words for name, words in WORDS.items() if name == reads), None),
        "speed": labelled_speed(summary.speedup, summary.speedup_interval, summary.bound) if summary else None,
        "figures": {name: getattr(summary, name, None) for name in TOGETHER},
    }


def _settings(trace: Trace) -> dict[str, str]:
    """A run's settings as texts, by name."""
    header = trace.header
    texts = {}
    # Each setting from its place: an old header may have further keys, whose values nothing has checked.
    places: list[tuple[str, Mapping[str, Any]]] = [
        (SCHEDULE, dict(header.main["config"])),
        (RUN, {**header.sampling, "seed": header.seed}),
    ]
    for owner, values in places:
        for setting in settings_of(owner):
            if setting.name in values:
                value = values[setting.name]
                texts[setting.name.replace("_", " ")] = "default" if value is None else setting.kind.write(value)
    device = {**header.device}
    others = (header.prompt, header.model["id"], header.model["dtype"], header.device["name"], device.get("decoder"))
    return texts | {name: str(value) for name, value in zip(OTHERS, others, strict=True)}


def _drift(trace: Trace) -> list[float | None]:
    lane = trace.header.main["id"]
    audits = [trace.audits[lane].get(step.step) for step in trace.steps[lane][1:]]
    return [number(audit.mean_drift, 4) if audit else None for audit in audits]
