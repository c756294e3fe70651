"""A benchmark's table: scores and quality of both lanes, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lora_drop.evaluation.tasks.base import Task
from lora_drop.evaluation.tasks.runner import LANES
from lora_drop.method.interval import ratio_interval

Z95 = 1.959964


def summarise(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a task's row. Intervals are 95%: Wilson's for accuracies, a bootstrap over records for all other values.

    `difference` is LoRA-Drop's score minus the full model's on the same records, `same_answer` the share of records
    with equal answers. NLL, KL and agreement are means over the gold texts' tokens.
    """
    ran = [record for record in records if "skipped" not in record]
    scored = [record for record in ran if record["baseline"]["score"] is not None]
    row: dict[str, Any] = {
        "task": task.name,
        "metric": task.metric,
        "chance": task.chance,
        "records": len(ran),
        "scored": len(scored),
        "skipped": len(records) - len(ran),
        "cut": sum(record["cut"] for record in ran),
    }
    scores = {lane: np.array([record[lane]["score"] for record in scored], float) for lane in LANES}
    for lane in LANES:
        row[lane] = _wilson(scores[lane]) if task.accuracy else _bootstrap(scores[lane])
    row["difference"] = _bootstrap(scores["lora_drop"] - scores["baseline"])
    same = [record["baseline"]["answer"] == record["lora_drop"]["answer"] for record in scored]
    row["same_answer"] = sum(same) / len(same) if same else None
    for steps in ("all_steps", "lora_steps"):
        counted = [record[steps] for record in ran if record[steps]["count"]]
        counts = np.array([means["count"] for means in counted], float)
        row[f"{steps}_count"] = int(counts.sum())
        values = {name: np.array([means[name] for means in counted], float) for name in _QUALITY}
        values["nll_gap"] = values["nll_lora_drop"] - values["nll_baseline"]
        for name, each in values.items():
            row[f"{steps}_{name}"] = _bootstrap(each, counts)
    row["parts"] = _parts(scored)
    return row


_QUALITY = ("nll_baseline", "nll_lora_drop", "kl", "top1_agreement")


def _parts(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both lanes' mean scores by language, subtask or dataset."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(record["part"], []).append(record)
    return {
        part: {"records": len(group)} | {lane: sum(r[lane]["score"] for r in group) / len(group) for lane in LANES}
        for part, group in sorted(parts.items())
    }


def _wilson(scores: np.ndarray) -> dict[str, float | None]:
    """The share of ones, with Wilson's score interval."""
    n = len(scores)
    if not n:
        return {"value": None, "low": None, "high": None}
    p = float(scores.mean())
    middle, spread = p + Z95**2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    low, high = ((middle + sign * spread) / (1 + Z95**2 / n) for sign in (-1, 1))
    return {"value": p, "low": max(low, 0.0), "high": min(high, 1.0)}


def _bootstrap(values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float | None]:
    """The weighted mean, with its interval over resampled records."""
    if not len(values):
        return {"value": None, "low": None, "high": None}
    weights = np.ones(len(values)) if weights is None else weights
    value = float((values * weights).sum() / weights.sum())
    low, high = ratio_interval(list(zip(values * weights, weights, strict=True))) or (value, value)
    return {"value": value, "low": low, "high": high}


def markdown(result: dict[str, Any]) -> str:
    """Write the table as Markdown: scores first, then the quality on the gold texts."""
    return "\n".join([*_score_table(result["rows"]), "", *_quality_table(result["rows"])]) + "\n"


def _score_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| task | metric | records | chance | full model [95%] | LoRA-Drop [95%] | difference [95%] | same answer |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        chance = "" if row["chance"] is None else f"{100 * row['chance']:.0f}"
        cells = [row["task"], row["metric"], str(row["scored"]), chance]
        cells += [_range(row[lane], 100, ".1f") for lane in LANES]
        cells += [_range(row["difference"], 100, "+.1f"), _cell(row["same_answer"], 100, ".0f", "%")]
        yield f"| {' | '.join(cells)} |"


def _quality_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| task | gold tokens | NLL, full model | NLL, LoRA-Drop | NLL gap [95%] | KL, all steps | "
        "same next token, LoRA steps [95%] |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [row["task"], f"{row['all_steps_count']:,}"]
        cells += [_cell(row[f"all_steps_{name}"]["value"], 1, ".3f") for name in ("nll_baseline", "nll_lora_drop")]
        cells += [_range(row["all_steps_nll_gap"], 1, "+.3f"), _cell(row["all_steps_kl"]["value"], 1, ".3f")]
        cells.append(_range(row["lora_steps_top1_agreement"], 100, ".1f", "%"))
        yield f"| {' | '.join(cells)} |"


def _cell(value: float | None, scale: float, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{scale * value:{form}}{unit}"


def _range(interval: dict[str, float | None], scale: float, form: str, unit: str = "") -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:  # all three are None, or none is
        return "-"
    return f"{scale * value:{form}}{unit} [{scale * low:{form}}, {scale * high:{form}}]"
