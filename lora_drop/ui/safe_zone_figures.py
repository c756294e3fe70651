"""What the Safe zone tab draws: figures in every variant, their rows as a table, a bar of progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from lora_drop.evaluation.measure import KEY
from lora_drop.run.exports.figures import PANELS, pareto, sweep_heatmaps
from lora_drop.run.exports.scripts import plotly_script
from lora_drop.ui.components import Scripted, head_of

NO_POINTS = "No point yet: run a sweep, and it grows here point by point."
Sweep = dict[str, Any]


class Figure(Scripted):
    """A figure of `figures.py`, in both themes and for two widths, so that the page follows both with no request.

    Its value is what `drawn` returns, or a text that says why there is nothing to see.
    """

    # Gradio makes a component anew for an update, and then without a value.
    def __init__(self, value: dict[str, Any] | str = "", **kwargs: Any):
        super().__init__(
            value,
            "figure.html",
            "mountFigure(element, props, watch)",
            head_of(plotly_script()),
            **kwargs,
        )


class Progress(Scripted):
    """A bar and a line of a reserved height: `{"kind", "text", "done", "total"}`, kinds as of `Status`."""

    def __init__(self, text: str = "", **kwargs: Any):
        super().__init__(
            progress_value("idle", text),
            "progress.html",
            "mountProgress(element, props, watch)",
            **kwargs,
        )


def progress_value(kind: str, text: str, done: int = 0, total: int = 1) -> dict[str, Any]:
    return {"kind": kind, "text": text, "done": done, "total": total}


def drawn(title: str, note: str, rows: list[dict[str, Any]], draw: Callable[[str, bool], go.Figure]) -> dict[str, Any]:
    """A figure's value: `draw(theme, compact)` in every variant, and its rows as texts for a table."""
    variants = {
        name: {theme: json.loads(draw(theme, name == "narrow").to_json()) for theme in ("light", "dark")}
        for name in ("wide", "narrow")
    }

    def text(row: dict[str, Any], name: str, form: Callable[[float], str]) -> str:
        return "–" if row.get(name) is None else form(row[name])

    columns = ["Rule", "Part", "Adapters", "Drop ratio", "Period", *(panel[1] for panel in PANELS)]
    table = [
        [
            *(str(row.get(name) or "not recorded") for name in KEY[:3]),
            *(f"{row[name]:g}" for name in KEY[3:]),
            *(text(row, name, form) for name, _, form, _ in PANELS),
        ]
        for row in rows
    ]
    return {"title": title, "note": note, "columns": columns, "rows": table} | variants


def heatmaps_of(sweep: Sweep | None, group: tuple[str, str, str] | None) -> dict[str, Any] | str:
    """The value of the heatmaps' figure."""
    if not sweep or not group:
        return NO_POINTS
    rows = [row for row in sweep["rows"] if tuple(row.get(name) for name in KEY[:3]) == group]
    title = f"Over drop ratio and period: {words_of(group)}"
    return drawn(
        title, _measured_on(sweep), rows, lambda theme, compact: sweep_heatmaps(sweep, *group, theme, compact)
    )


def pareto_of(sweep: Sweep | None, quality: str) -> dict[str, Any] | str:
    """The value of the Pareto figure."""
    if not sweep or not sweep["rows"]:
        return NO_POINTS
    note = f"{_measured_on(sweep)} The paper's own points are marked as the paper's: other models, second-hand."
    return drawn(
        "Speed against quality, all rules",
        note,
        sweep["rows"],
        lambda theme, compact: pareto(sweep, quality, theme, compact),
    )


def words_of(group: tuple[str, str, str]) -> str:
    reuse, part, adapters = group
    skipped = "whole layers" if part == "block" else "attention only"
    return f"{reuse}, {skipped}, " + ("no adapters" if adapters == "none" else f"adapters {adapters}")


def _measured_on(sweep: Sweep) -> str:
    data, device = sweep.get("data", {}), sweep.get("device", {})
    tokens = next((row["tokens"] for row in sweep["rows"] if row.get("tokens")), None)
    size = f"{tokens:,} tokens of " if tokens else ""
    return f"Measured on {size}{data.get('file', 'unnamed data')}, {device.get('name', 'unnamed device')}."
