"""What the figures of a sweep share: fonts, layout, and the text at a point.

Plotly reads texts as HTML, so names that come with a sweep are escaped.
"""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from lora_drop.method.cost import human_bytes
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.results.rows import AGREEMENT, Group, Row, group_of, nats, percent, times, written

FONT = "Inter, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
TITLE, TEXT, SMALL, CELL = 26, 17, 15, 20  # font sizes in pixels, readable from the back of a room at 1600 x 900
COMPACT = 12 / TEXT  # their scale in a panel of a narrow screen
LEGEND = {"orientation": "h", "font": {"size": SMALL}, "x": 0, "y": 0.01, "yref": "container", "yanchor": "bottom"}
LEGEND_BELOW: dict[str, Any] = {"legend": LEGEND, "margin_b": 160}


def axis_of(colors: dict[str, str]) -> dict[str, Any]:
    """The look of an axis."""
    return {"gridcolor": colors["grid"], "linecolor": colors["muted"], "zeroline": False}


def safe(text: Any) -> str:
    """The text for plotly, which reads HTML."""
    return html.escape(str(text), quote=False)


def label_of(group: Group) -> str:
    """A group in words."""
    return safe(" · ".join(group.words))


def hover_text(row: Row) -> str:
    """All figures of a row, as lines of plotly's HTML."""
    decimals, ms = "{:.3f}".format, "{:.1f} ms".format
    count = "{:g}".format
    lines = [
        f"<b>{label_of(group_of(row))}</b>",
        f"drop ratio {row['drop_ratio']:g}, period {row['period']:g}, "
        f"{written(row, 'layers_dropped', count)} layers skipped, rank {written(row, 'rank', count)}",
        f"same next token, LoRA steps: {written(row, AGREEMENT[0], percent)}",
    ]
    for label, steps in (("LoRA steps", "lora_steps"), ("all steps", "all_steps")):
        lines.append(
            f"NLL, {label}: {written(row, f'{steps}_nll_baseline', decimals)} → "
            f"{written(row, f'{steps}_nll_lora_drop', decimals)} ({written(row, f'{steps}_nll_gap', nats)}), "
            f"KL {written(row, f'{steps}_kl', decimals)}"
        )
    lines += [
        f"speed: measured {written(row, 'speedup', times)}, bound {written(row, 'bound', times)}",
        f"a step: baseline {written(row, 'ms_baseline', ms)}, refresh {written(row, 'ms_refresh', ms)}, "
        f"LoRA {written(row, 'ms_lora', ms)}",
        f"KV: {written(row, 'kv_bytes', human_bytes)} of {written(row, 'kv_bytes_baseline', human_bytes)} "
        f"({written(row, 'kv_saved', percent)} saved)",
        f"scored tokens: {written(row, 'tokens', '{:,}'.format)}",
    ]
    return "<br>".join(lines)


def provenance(sweep: dict[str, Any]) -> str:
    """One line: which model, where, on what."""
    model, device, data = (sweep.get(name) or {} for name in ("model", "device", "data"))
    parts = [
        f"{model.get('id', 'model not recorded')} ({model.get('dtype', 'dtype not recorded')})",
        device.get("name", "device not recorded"),
    ]
    if data:
        parts.append(f"{data.get('records', '?')} records of {data.get('file', '?')}")
    if sweep.get("date"):
        parts.append(str(sweep["date"])[:10])
    return safe(" · ".join(map(str, parts)))


def layout(theme: str, title: str, subtitle: str) -> dict[str, Any]:
    """The layout that all figures start from."""
    colors = COLORS[theme]
    heading = {"text": title, "font": {"size": TITLE, "color": colors["ink"]}, "x": 0.012, "xanchor": "left"}
    return {
        "title": heading | {"subtitle": {"text": subtitle, "font": {"size": SMALL, "color": colors["muted"]}}},
        "template": "none",
        "font": {"family": FONT, "size": TEXT, "color": colors["ink"]},
        "paper_bgcolor": colors["panel"],
        "plot_bgcolor": colors["panel"],
        "hoverlabel": {
            "bgcolor": colors["panel"],
            "bordercolor": colors["muted"],
            "align": "left",
            "font": {"family": FONT, "size": SMALL, "color": colors["ink"]},
        },
        "margin": {"l": 90, "r": 30, "t": 130, "b": 70},
    }


def message(theme: str, title: str, text: str) -> go.Figure:
    """A figure with a message and no data."""
    figure = go.Figure(layout=layout(theme, title, ""))
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
