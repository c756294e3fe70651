"""What the Safe zone tab draws: figures in every variant, their rows as a table, a bar of progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from lora_drop.run.exports.figures.heatmaps import PANELS
from lora_drop.run.exports.figures.pareto import pareto
from lora_drop.run.exports.scripts import plotly_script
from lora_drop.run.results.rows import QUALITIES, group_of
from lora_drop.ui.components import Scripted, head_of
from lora_drop.ui.safe_zone.map import NO_POINTS, measured_on

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

    columns = ["Rule", "Part", "Adapters", "Also set", "Drop ratio", "Period", *(panel[1] for panel in PANELS)]
    table = [
        [
            *(part or "–" for part in group_of(row)),
            *(f"{row[name]:g}" for name in ("drop_ratio", "period")),
            *(text(row, name, form) for name, _, form, _ in PANELS),
        ]
        for row in rows
    ]
    return {"title": title, "note": note, "columns": columns, "rows": table} | variants


def pareto_of(sweep: Sweep | None, quality: str) -> dict[str, Any] | str:
    """The value of the Pareto figure; where the sweep has no such quality, with one that it has."""
    if not sweep or not sweep["rows"]:
        return NO_POINTS
    known = [name for name, (column, *_) in QUALITIES.items() if any(row.get(column) for row in sweep["rows"])]
    if known and quality not in known:
        quality = known[0]  # an older sweep has no own answers, one of the page no given texts
    note = f"{measured_on(sweep)} The paper's own points are marked as the paper's: other models, second-hand."
    return drawn(
        "Speed against quality, all rules",
        note,
        sweep["rows"],
        lambda theme, compact: pareto(sweep, quality, theme, compact),
    )
