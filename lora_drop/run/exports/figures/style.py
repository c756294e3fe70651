"""What the figures of a sweep share: which rows belong together, how a figure is written, fonts and layout.

Plotly reads texts as HTML, so names that come with a sweep are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from lora_drop.errors import LoraDropError
from lora_drop.method.cost import human_bytes
from lora_drop.run.exports.colors import COLORS

FONT = "Inter, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
TITLE, TEXT, SMALL, CELL = 26, 17, 15, 20  # font sizes in pixels, readable from the back of a room at 1600 x 900
COMPACT = 12 / TEXT  # what they are multiplied by in a panel of a narrow screen

Row = dict[str, Any]
Group = tuple[str, str, str, str]  # reuse, part, adapters, and what else is set, in words


def percent(value: float) -> str:
    """A share: `12.3%`."""
    return f"{value:.1%}"


def nats(value: float) -> str:
    """Nats, with their sign."""
    return f"{value:+.2f}"


def times(value: float) -> str:
    """A ratio of speeds: `1.23x`."""
    return f"{value:.2f}x"


AGREEMENT = ("lora_steps_top1_agreement", "Same next token, LoRA steps", percent)
NLL_GAP = ("all_steps_nll_gap", "NLL gap, all steps (nats)", nats)
OWN_LOSS = ("own_all_steps_kl", "Quality loss, own answers (nats)", nats)
QUALITIES = {"own": OWN_LOSS, "agreement": AGREEMENT, "nll_gap": NLL_GAP}


def groups(sweep: dict[str, Any]) -> list[Group]:
    """The ways of skipping that a sweep measured, in its order.

    Rows that skip nothing are the baseline and belong to every group of their rule.
    """
    rows = sweep.get("rows", [])
    found = dict.fromkeys(group_of(row) for row in rows if not is_baseline(row))
    return list(found or dict.fromkeys(map(group_of, rows)))


def group_of(row: Row) -> Group:
    """How a row skips: all but its drop ratio and period."""
    return row["reuse"], row["part"], row.get("adapters") or "not recorded", _others(row)


def _others(row: Row) -> str:
    """What else a row sets, where it is not the paper's."""
    words = (
        "exact refreshes" if row.get("refresh") == "repair" else "",
        "K/V written" if row.get("kv") == "write" and row.get("refresh") != "repair" else "",
        f"accept {row['accept']:g}" if row.get("accept") else "",
        "screened head" if row.get("head") == "screened" else "",
        f"parts {row['parts']}" if row.get("parts", "auto") != "auto" else "",
        "chosen layers" if row.get("drop_layers") else "",
    )
    return ", ".join(filter(None, words))


def is_baseline(row: Row) -> bool:
    """Whether a row skips nothing."""
    return row["period"] == 1 or row.get("layers_dropped") == 0


def value_of(row: Row | None, name: str) -> float | None:
    """The row's finite number, or None."""
    value = row.get(name) if row else None
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def shown(row: Row, name: str, form: Callable[[float], str]) -> str:
    """A row's number as it is written; a dash where there is none."""
    value = value_of(row, name)
    return "–" if value is None else form(value)


def safe(text: Any) -> str:
    """A text that plotly shows as it is."""
    return html.escape(str(text), quote=False)


def label_of(group: Group) -> str:
    """A group in words."""
    reuse, part, adapters, others = map(safe, group)
    trained = "no adapters" if adapters == "none" else f"adapters {adapters}"
    return " · ".join(filter(None, (reuse, part, others, trained)))


def hover_text(row: Row) -> str:
    """All that a row knows, as lines of plotly's HTML."""
    decimals, ms = "{:.3f}".format, "{:.1f} ms".format
    lines = [
        f"<b>{label_of(group_of(row))}</b>",
        f"drop ratio {row['drop_ratio']:g}, period {row['period']:g}, "
        f"{shown(row, 'layers_dropped', '{:g}'.format)} layers skipped, rank {shown(row, 'rank', '{:g}'.format)}",
        f"same next token, LoRA steps: {shown(row, AGREEMENT[0], percent)}",
    ]
    for label, steps in (("LoRA steps", "lora_steps"), ("all steps", "all_steps")):
        lines.append(
            f"NLL, {label}: {shown(row, f'{steps}_nll_baseline', decimals)} → "
            f"{shown(row, f'{steps}_nll_lora_drop', decimals)} ({shown(row, f'{steps}_nll_gap', nats)}), "
            f"KL {shown(row, f'{steps}_kl', decimals)}"
        )
    lines += [
        f"speed: measured {shown(row, 'speedup', times)}, physical bound {shown(row, 'bound', times)}",
        f"a step: baseline {shown(row, 'ms_baseline', ms)}, refresh {shown(row, 'ms_refresh', ms)}, "
        f"LoRA {shown(row, 'ms_lora', ms)}",
        f"KV: {shown(row, 'kv_bytes', human_bytes)} of {shown(row, 'kv_bytes_baseline', human_bytes)} "
        f"({shown(row, 'kv_saved', percent)} saved)",
        f"scored tokens: {shown(row, 'tokens', '{:,}'.format)}",
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
    """A figure that says why there is nothing to see."""
    figure = go.Figure(layout=layout(theme, title, ""))
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)


def compacted(figure: go.Figure) -> go.Figure:
    """The figure for a narrow panel that has a heading of its own: no title, and every text smaller."""

    def smaller(text: Any) -> None:
        size = text.font.size or TEXT
        text.update(font={"size": round(size * COMPACT)})

    figure.update_layout(title=None, font_size=TEXT * COMPACT, margin={"l": 50, "r": 12, "t": 30, "b": 50})
    figure.for_each_annotation(smaller)
    figure.for_each_xaxis(lambda axis: smaller(axis.title))
    figure.for_each_yaxis(lambda axis: smaller(axis.title))
    for trace in figure.select_traces(lambda trace: trace.textfont.size):
        trace.textfont.size = round(trace.textfont.size * COMPACT)
    figure.update_layout(hoverlabel_font_size=SMALL * COMPACT, legend_font_size=SMALL * COMPACT)
    return figure


def check_theme(theme: str) -> None:
    """Raises LoraDropError: there is no such theme."""
    if theme not in COLORS:
        raise LoraDropError(f"theme must be one of {', '.join(COLORS)}; got {theme!r}.")
