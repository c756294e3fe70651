"""The lanes of a run as a table: speed, work, memory and quality of each, on one clock."""

from __future__ import annotations

from typing import Any

from lora_drop.method.methods import METHODS
from lora_drop.method.quality import loss_words
from lora_drop.run.report.report import Report
from lora_drop.run.trace.records import BASELINE, number


def lane_table(report: Report) -> list[dict[str, Any]]:
    """A row for each lane, in the run's order; empty where no method was named beside LoRA-Drop.

    Returns:
        Rows of `lane` (its id), `method`, `label`, `is_trained` and `note` (None of a lane without a method),
        `tokens_per_second`, `speedup` with `speedup_interval`, `layer_runs` (reads of a layer's weights), `layer_rows`
        (tokens that a layer computed) and `bytes`, each a token, `drafts`, `accepted` (their share; None without
        verification), `regret` in nats per token, `text` (how it reads, in words) and `kv_bytes`.
    """
    lanes: list[Any] = report.trace.header.lanes
    if not any(lane.get("method") for lane in lanes):
        return []
    rows = []
    for lane in lanes:
        name, lane_report = lane["id"], report.lanes[lane["id"]]
        method = METHODS.get(str(lane.get("method")).partition(":")[0])
        row = {
            "tokens_per_second": lane_report.tokens_per_second,
            "speedup": report.speedup(name),
            "layer_runs": lane_report.layer_runs,
            "layer_rows": lane_report.layer_rows,
            "bytes": lane_report.bytes_per_token,
            "accepted": lane_report.acceptance,
            "regret": lane_report.loss,
        }
        rows.append(
            {
                "lane": name,
                "method": lane.get("method"),
                "label": METHODS["full"].label if name == BASELINE else lane["label"],
                "is_trained": None if method is None or name == BASELINE else method.is_trained,
                "note": method and f"{method.note} Source: {method.source}.",
                **{key: number(value, 6) for key, value in row.items()},
                "speedup_interval": report.speedup_interval(name),
                "drafts": lane_report.drafts,
                "text": _text(report, name),
                "kv_bytes": lane_report.steps[-1].kv_bytes if lane_report.steps else 0,
            }
        )
    return rows


def _text(report: Report, lane: str) -> str:
    if not report.has_baseline or lane == BASELINE:
        return "-"
    if report.first_difference(lane) is None:
        return "the full model's text"
    loss = report.lanes[lane].loss
    return "another text" if loss is None else f"regret {loss_words(loss)}"
