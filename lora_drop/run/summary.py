"""The last record of a run: each lane's figures, and what LoRA-Drop gives beside the baseline."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from lora_drop.decode.lane import Lane
from lora_drop.run.report.report import Report
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.trace.records import BASELINE, FREE, LORA_DROP, TOGETHER, Summary, number

DIGITS = {"speedup": 4, "bound": 4, "kv_saved": 6, "accepted": 6}


def summarise(report: Report, lanes: dict[str, Lane], prefill_cached: bool = False) -> Summary:
    """The last record of a run. A further lane's comparison with the baseline is among that lane's figures.

    Args:
        lanes: the lanes as they ended, by id. One that did not end was stopped.
    """
    beside = {name: _beside(report, name) for name in lanes if name != BASELINE}
    figures: dict[str, Any] = {}
    for name, lane in lanes.items():
        lane_report = report.lanes[name]
        ended = lane.ended or "stopped"
        text, thoughts = report.trace.text(name), report.trace.thoughts(name)
        figures[name] = {
            "tokens": len(lane_report.steps),
            **({"thoughts": thoughts} if thoughts else {}),
            "tokens_per_second": number(lane_report.tokens_per_second, 3),
            "prefill_ms": round(lane.prefill_ms, 3),
            "decode_ms": round(lane_report.decode_ms, 3),
            "kv_bytes": lane.kv_bytes,
            "kv_allocated_bytes": lane.state.kv.allocated_bytes,
            **lane_report.refresh_counts,
            **lane_report.draft_counts,
            **(beside[name] if name not in (BASELINE, LORA_DROP) else {}),
            "collapsed": lane_report.loop_at(ended),
            "text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            "ended": ended,
        }
    main = beside.get(LORA_DROP, dict.fromkeys((*TOGETHER, *FREE)))
    summary = Summary(lanes=figures, **main, prefill_cached=prefill_cached)
    report.add(summary)
    return dataclasses.replace(summary, **conclusions(report))


def _beside(report: Report, name: str) -> dict[str, Any]:
    """A lane beside the baseline: None where there is none, or nothing was decoded."""
    lane_report, figures = report.lanes[name], report.beside(name)
    figures["bound"] = figures["bound"] or 1.0
    return {
        **figures,
        **{key: number(figures[key], digits) for key, digits in DIGITS.items()},
        "tokens_per_refresh": round(lane_report.standing / lane_report.refreshes, 4)
        if lane_report.refreshes
        else None,
        "speedup_interval": report.speedup_interval(name),
        "quality": lane_report.quality.to_dict(),
    }
