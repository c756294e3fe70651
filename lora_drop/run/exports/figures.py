"""Figures of a sweep: `sweep.json` in, plotly figures out. Pure: no model, no torch.

Every number drawn is the sweep's; the paper's own (`lora_drop.method.paper`) are labelled as the paper's. Plotly
reads texts as HTML, so names that come with a sweep are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.method.cost import human_bytes
from lora_drop.run.exports.colors import COLORS

FONT = "Inter, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
TITLE, TEXT, SMALL, CELL = 26, 17, 15, 20  # font sizes in pixels, readable from the back of a room at 1600 x 900
COMPACT = 12 / TEXT  # what they are multiplied by in a panel of a narrow screen
# A picture for a talk, whatever the size on the page.
CONFIG = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"width": 1600, "height": 900, "scale": 2}}

Row = dict[str, Any]
Group = tuple[str, str, str]  # reuse, part, adapters


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _nats(value: float) -> str:
    return f"{value:+.2f}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


AGREEMENT = ("lora_steps_top1_agreement", "Same top token, LoRA steps", _percent)
NLL_GAP = ("all_steps_nll_gap", "NLL lost, all steps (nats)", _nats)
QUALITIES = {"agreement": AGREEMENT, "nll_gap": NLL_GAP}
# (column, title, form, colour at the high end), in reading order; the sixth place is for the words.
PANELS = (
    (*AGREEMENT, "baseline"),
    (*NLL_GAP, "lora-drop"),
    ("kv_saved", "KV memory saved", _percent, "third"),
    ("speedup", "Speed, measured", _times, "refresh"),
    ("bound", "Speed, physical bound", _times, "refresh"),
)
RULE_COLORS = {"state": "lora-drop", "anchor": "dropped", "residual": "baseline", "skip": "third"}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")


def groups(sweep: dict[str, Any]) -> list[Group]:
    """The (reuse, part, adapters) that a sweep measured, in its order.

    Rows that drop nothing are the baseline and belong to every group of their rule.
    """
    rows = sweep.get("rows", [])
    found = dict.fromkeys(_group(row) for row in rows if not _is_baseline(row))
    return list(found or dict.fromkeys(map(_group, rows)))


def _group(row: Row) -> Group:
    return row["reuse"], row["part"], row.get("adapters") or "not recorded"


def _is_baseline(row: Row) -> bool:
    return row["period"] == 1 or row.get("layers_dropped") == 0


def _value(row: Row | None, name: str) -> float | None:
    """The row's finite number, or None."""
    value = row.get(name) if row else None
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _shown(row: Row, name: str, form: Callable[[float], str]) -> str:
    value = _value(row, name)
    return "–" if value is None else form(value)


def _safe(text: Any) -> str:
    return html.escape(str(text), quote=False)


def _label(group: Group) -> str:
    reuse, part, adapters = map(_safe, group)
    return f"{reuse} · {part} · " + ("no adapters" if adapters == "none" else f"adapters {adapters}")


def _hover(row: Row) -> str:
    """All that a row knows, as lines of plotly's HTML."""
    decimals, ms = "{:.3f}".format, "{:.1f} ms".format
    lines = [
        f"<b>{_label(_group(row))}</b>",
        f"drop ratio {row['drop_ratio']:g}, period {row['period']:g}, "
        f"{_shown(row, 'layers_dropped', '{:g}'.format)} layers dropped, rank {_shown(row, 'rank', '{:g}'.format)}",
        f"same top token, LoRA steps: {_shown(row, AGREEMENT[0], _percent)}",
    ]
    for label, steps in (("LoRA steps", "lora_steps"), ("all steps", "all_steps")):
        lines.append(
            f"NLL, {label}: {_shown(row, f'{steps}_nll_baseline', decimals)} → "
            f"{_shown(row, f'{steps}_nll_lora_drop', decimals)} ({_shown(row, f'{steps}_nll_gap', _nats)}), "
            f"KL {_shown(row, f'{steps}_kl', decimals)}"
        )
    lines += [
        f"speed: measured {_shown(row, 'speedup', _times)}, physical bound {_shown(row, 'bound', _times)}",
        f"a step: baseline {_shown(row, 'ms_baseline', ms)}, refresh {_shown(row, 'ms_refresh', ms)}, "
        f"LoRA {_shown(row, 'ms_lora', ms)}",
        f"KV: {_shown(row, 'kv_bytes', human_bytes)} of {_shown(row, 'kv_bytes_baseline', human_bytes)} "
        f"({_shown(row, 'kv_saved', _percent)} saved)",
        f"scored tokens: {_shown(row, 'tokens', '{:,}'.format)}",
    ]
    return "<br>".join(lines)


def _provenance(sweep: dict[str, Any]) -> str:
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
    return _safe(" · ".join(map(str, parts)))


def _layout(theme: str, title: str, subtitle: str) -> dict[str, Any]:
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


def _message(theme: str, title: str, text: str) -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure(layout=_layout(theme, title, ""))
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)


def _compact(figure: go.Figure) -> go.Figure:
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


def _check_theme(theme: str) -> None:
    if theme not in COLORS:
        raise LoraDropError(f"theme must be one of {', '.join(COLORS)}; got {theme!r}.")


def sweep_heatmaps(
    sweep: dict[str, Any], reuse: str, part: str, adapters: str, theme: str = "light", compact: bool = False
) -> go.Figure:
    """Small multiples over (drop ratio, period) of one rule: quality, KV saved, measured speed and its bound.

    The cells hold the numbers; the paper's safe zone is outlined and labelled as the paper's claim.

    Args:
        sweep: the content of `sweep.json`; see `evaluation.sweep.read_sweep`.
        reuse, part, adapters: which rows; see `groups`.
        theme: `light` or `dark`.
        compact: one map below the other and without title and words, for a narrow panel that has its own.
    """
    _check_theme(theme)
    colors, group = COLORS[theme], (reuse, part, adapters)
    cells = {
        (row["drop_ratio"], row["period"]): row
        for row in sweep.get("rows", [])
        if _group(row) == group or (_is_baseline(row) and _group(row)[:2] == group[:2])
    }
    title = f"LoRA-Drop sweep: {_label(group)}"
    if not cells:
        return _message(theme, title, "This sweep has no point of this rule yet.")
    ratios, periods = (sorted(set(values)) for values in zip(*cells, strict=True))
    grid = [[cells.get((ratio, period)) for ratio in ratios] for period in periods]
    speeds = [value for row in cells.values() for name in ("speedup", "bound") if (value := _value(row, name))]
    # Speed and bound share a scale, so that a colour means the same in both; a share is out of 1.
    spans = dict.fromkeys(("speedup", "bound"), (min(speeds, default=1), max(speeds, default=1)))
    spans |= {AGREEMENT[0]: (0, 1), "kv_saved": (0, 1)}

    columns = 1 if compact else 3
    rows = -(-len(PANELS) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[panel[1] for panel in PANELS],
        horizontal_spacing=0.06,
        vertical_spacing=0.06 if compact else 0.2,
        specs=[[{} if r * columns + c < len(PANELS) else None for c in range(columns)] for r in range(rows)],
    )
    figure.update_annotations(font={"size": TEXT, "color": colors["ink"]})
    for number, (name, _, form, high) in enumerate(PANELS):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        z = [[_value(cell, name) for cell in line] for line in grid]
        values = [value for line in z for value in line if value is not None]
        low, top = spans.get(name, (0, max(values, default=1)))
        top = max(top, low + 0.01)  # one value alone still needs a range
        scale = colors["grid"], colors[high]
        figure.add_heatmap(
            x=[f"{ratio:g}" for ratio in ratios],
            y=[f"{period:g}" for period in periods],
            z=z,
            zmin=low,
            zmax=top,
            hovertext=[["" if cell is None else _hover(cell) for cell in line] for line in grid],
            hoverinfo="text",
            hoverongaps=False,
            colorscale=list(enumerate(scale)),
            showscale=False,
            xgap=3,
            ygap=3,
            name=name,
            **place,
        )
        # Texts of their own: those of a heatmap have too little contrast on its middle tones.
        flat = [(i, j, value) for j, line in enumerate(z) for i, value in enumerate(line)]
        figure.add_scatter(
            x=[f"{ratios[i]:g}" for i, _, _ in flat],
            y=[f"{periods[j]:g}" for _, j, _ in flat],
            text=["–" if value is None else form(value) for _, _, value in flat],
            mode="text",
            textfont={
                "size": CELL if len(ratios) < 5 else SMALL,
                "color": [
                    colors["muted"] if value is None else _ink_on(scale, (value - low) / (top - low))
                    for _, _, value in flat
                ],
            },
            hoverinfo="skip",
            **place,
        )
        _outline_safe_zone(figure, colors, ratios, periods, place)
    axis = {"type": "category", "showgrid": False, "title_standoff": 6, "title_font_size": TEXT}
    figure.update_xaxes(title_text="drop ratio p", **axis)
    figure.update_yaxes(title_text="period w = k + 1", **axis)
    figure.update_layout(_layout(theme, title, _provenance(sweep)), showlegend=False)
    if compact:
        return _compact(figure)
    return figure.add_annotation(
        text="<br>".join(_words()),
        x=0.7,  # under the third column
        y=0.43,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="top",
        align="left",
        showarrow=False,
        font={"size": SMALL, "color": colors["ink"]},
    )


def _outline_safe_zone(
    figure: go.Figure, colors: dict[str, str], ratios: list[float], periods: list[int], place: dict[str, int]
) -> None:
    """A dashed line around the cells that the paper calls safe; both lists ascend, so they fill a corner."""
    across = sum(ratio <= paper.SAFE_DROP_RATIO for ratio in ratios)
    up = sum(period - 1 <= paper.SAFE_K for period in periods)
    if across and up:
        figure.add_shape(
            type="rect",
            x0=-0.5,
            x1=across - 0.5,
            y0=-0.5,
            y1=up - 0.5,
            line={"color": colors["ink"], "width": 3, "dash": "dash"},
            **place,
        )
        figure.add_annotation(
            text="the paper's safe zone",
            x=-0.5,
            y=up - 0.5,
            xanchor="left",
            xshift=6,
            showarrow=False,
            bgcolor=colors["panel"],
            font={"size": SMALL, "color": colors["ink"]},
            **place,
        )


def _ink_on(scale: tuple[str, str], share: float) -> str:
    """Black or white, whichever reads better on the colour at `share` of a scale of two: a contrast of 4.5 or more."""
    share = min(max(share, 0), 1)
    low, high = ([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in scale)
    mixed = [a + share * (b - a) for a, b in zip(low, high, strict=True)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mixed]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if luminance > 0.179 else "#FFFFFF"


def _words() -> list[str]:
    """The lines beside the heatmaps: what the outline and the bound are, and what the paper has there."""
    lines = [
        "<b>Dashed: the paper's safe zone</b>",
        f"p ≤ {paper.SAFE_DROP_RATIO:g} and k ≤ {paper.SAFE_K}: its claim, for other",
        "and larger models, with trained adapters",
        "",
        "<b>The physical bound</b>",
        "bytes that the full model reads over",
        "those that LoRA-Drop reads, at batch 1",
        "",
        "<b>The paper's own speed</b> (second-hand)",
    ]
    for (ratio, k), rows in _paper_settings():
        lines.append(f"p {ratio:g}, k {k}: {_range(row.speedup for row in rows)}")
        lines.append(f"    its models' bytes allow {_range(row.bound for row in rows)}")
    return [*lines, "It may count what this bound does not."]


def _paper_settings() -> list[tuple[tuple[float, int], list[paper.PaperRow]]]:
    settings = dict.fromkeys((row.drop_ratio, row.k) for row in paper.ROWS)
    return [(key, [row for row in paper.ROWS if (row.drop_ratio, row.k) == key]) for key in settings]


def _range(values: Iterable[float]) -> str:
    values = list(values)
    return f"{min(values):.2f}x to {max(values):.2f}x"


def pareto(
    sweep: dict[str, Any], quality: str = "agreement", theme: str = "light", compact: bool = False
) -> go.Figure:
    """Speed against quality, a trace for each (reuse, part, adapters); better is up and to the right.

    The Pareto front joins the points that no other beats in both. A thin line leads from each point to its physical
    bound, a hollow twin. The paper's own points have a strip of their own on the same speed axis: they have accuracies
    of other models, which no quality axis of ours can hold.

    Args:
        quality: `agreement` (same top token at LoRA steps) or `nll_gap` (all steps).
        theme: `light` or `dark`.
        compact: for a narrow panel that has a title of its own.
    """
    _check_theme(theme)
    if quality not in QUALITIES:
        raise LoraDropError(f"quality must be one of {', '.join(QUALITIES)}; got {quality!r}.")
    colors = COLORS[theme]
    column, y_title, form = QUALITIES[quality]
    title = "LoRA-Drop sweep: speed against quality"
    dropping = [row for row in sweep.get("rows", []) if not _is_baseline(row)]
    points = [row for row in dropping if None not in (_value(row, "speedup"), _value(row, column))]
    if not points:
        return _message(theme, title, "This sweep has no point with a speed and a quality yet.")

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.36, 0.64], vertical_spacing=0.06)
    _add_paper_strip(figure, colors)
    kinds = list(dict.fromkeys(_group(row)[1:] for row in points))
    for group in dict.fromkeys(map(_group, points)):
        own = [row for row in points if _group(row) == group]
        color = colors[RULE_COLORS.get(group[0], "muted")]
        symbol = SYMBOLS[kinds.index(group[1:]) % len(SYMBOLS)]
        _add_group(figure, own, column, _label(group), color, symbol)
    front = _front(points, column, lower_is_better=quality == "nll_gap")
    figure.add_scatter(
        x=[row["speedup"] for row in front],
        y=[row[column] for row in front],
        mode="lines+text",
        line={"color": colors["ink"], "width": 2, "dash": "dot", "shape": "vh"},
        text=_front_labels(front, column),
        textposition="top right",
        textfont={"size": SMALL},
        hoverinfo="skip",
        name="Pareto front",
        row=2,
        col=1,
    )
    figure.add_vline(x=1, line={"color": colors["muted"], "width": 1}, row=2, col=1)
    speeds = [1.0, *(row.speedup for row in paper.ROWS)]
    speeds += [value for row in points for name in ("speedup", "bound") if (value := _value(row, name)) is not None]
    lacking = len(dropping) - len(points)
    subtitle = _provenance(sweep) + (f" · {lacking} points without a value are left out" if lacking else "")
    figure.update_layout(
        _layout(theme, title, subtitle),
        legend={
            "orientation": "h",
            "font": {"size": SMALL},
            "x": 0,
            "y": 0.01,
            "yref": "container",
            "yanchor": "bottom",
        },
        margin_b=160,
    )
    axis = {"gridcolor": colors["grid"], "linecolor": colors["muted"], "zeroline": False}
    figure.update_xaxes(range=[min(speeds) - 0.05, max(speeds) + 0.2], ticksuffix="x", **axis)
    figure.update_xaxes(title={"text": "times the full model's speed", "font": {"size": TEXT}}, row=2, col=1)
    figure.update_yaxes(automargin=True, **axis)
    figure.update_yaxes(range=[-0.4, len(paper.SHAPES)], row=1, col=1)  # room for the labels over the top marks
    figure.update_yaxes(title={"text": y_title, "font": {"size": TEXT}}, row=2, col=1)
    if quality == "agreement":
        figure.update_yaxes(tickformat=".0%", row=2, col=1)
    else:
        figure.update_yaxes(autorange="reversed", row=2, col=1)
    if not compact:
        return figure
    # No room for words at the points, nor for a bank's name in the line of its rule.
    figure.layout.annotations = ()
    figure.for_each_trace(
        lambda trace: trace.update(
            mode=trace.mode.replace("+text", ""), name=trace.name.replace(" · adapters ", "<br>adapters ")
        )
    )
    return _compact(figure).update_layout(margin={"b": 290, "t": 10})


def _add_group(figure: go.Figure, rows: list[Row], column: str, label: str, color: str, symbol: str) -> None:
    """The measured points of one rule, and their bounds: hollow, at the end of a thin line."""
    twins = {"x": [], "y": []}
    for row in rows:
        twins["x"] += [row["speedup"], _value(row, "bound"), None]
        twins["y"] += [row[column], row[column], None]
    hover = [_hover(row) for row in rows]
    figure.add_scatter(
        **twins,
        mode="lines+markers",
        line={"color": color, "width": 1},
        marker={"symbol": f"{symbol}-open", "size": [0, 11, 0] * len(rows), "color": color, "opacity": 1},
        hovertext=[text for line in hover for text in ("", line, "")],
        hoverinfo="text",
        legendgroup=label,
        showlegend=False,
        name=f"{label}: bound",
        row=2,
        col=1,
    )
    figure.add_scatter(
        x=[row["speedup"] for row in rows],
        y=[row[column] for row in rows],
        mode="markers",
        marker={"symbol": symbol, "size": 14, "color": color},
        hovertext=hover,
        hoverinfo="text",
        legendgroup=label,
        name=label,
        row=2,
        col=1,
    )


def _front(rows: list[Row], column: str, lower_is_better: bool) -> list[Row]:
    """The rows that no other row beats in speed and quality, slowest first."""
    sign = -1 if lower_is_better else 1
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["speedup"], sign * row[column]), reverse=True):
        if not front or sign * row[column] > sign * front[-1][column]:
            front.append(row)
    return front[::-1]


def _front_labels(front: list[Row], column: str) -> list[str]:
    """A label for each point of the front that stands clear of the last one labelled; hovering tells of all."""
    across = (front[-1]["speedup"] - front[0]["speedup"]) or 1
    up = abs(front[-1][column] - front[0][column]) or 1
    labels, last = [], None
    for row in front:
        clear = last is None or (
            abs(row["speedup"] - last["speedup"]) > 0.15 * across or abs(row[column] - last[column]) > 0.06 * up
        )
        labels.append(f"\u2002p {row['drop_ratio']:g}, w {row['period']:g}" if clear else "")
        last = row if clear else last
    return labels


def _add_paper_strip(figure: go.Figure, colors: dict[str, str]) -> None:
    """The paper's rows above our points: a mark at each reported speed, hollow at the bound of that model's bytes."""
    rows = paper.ROWS
    hover = [
        f"<b>The paper's: {row.model}, p {row.drop_ratio:g}, k {row.k}</b><br>{paper.LABEL}<br>"
        f"average accuracy {row.accuracy_full} → {row.accuracy} ({row.accuracy_change:+} points)<br>"
        f"speed as reported {_times(row.speedup)}; the bytes of this model allow {_times(row.bound)}<br>"
        f"KV saved as reported about {row.kv_saved:.0%}; the exact formula gives at most {row.kv_limit:.0%}"
        for row in rows
    ]
    twins = {"x": [], "y": []}
    for row in rows:
        twins["x"] += [row.speedup, row.bound, None]
        twins["y"] += [row.model, row.model, None]
    figure.add_scatter(
        **twins,
        mode="lines+markers",
        line={"color": colors["muted"], "width": 1},
        marker={"symbol": "diamond-open", "size": [0, 11, 0] * len(rows), "color": colors["muted"], "opacity": 1},
        hovertext=[text for line in hover for text in ("", line, "")],
        hoverinfo="text",
        name="hollow: the physical bound",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=[row.speedup for row in rows],
        y=[row.model for row in rows],
        mode="markers+text",
        marker={"symbol": "line-ns-open", "size": 18, "color": colors["bad"], "line": {"width": 4}},
        text=[f"p {row.drop_ratio:g}, k {row.k}: accuracy {row.accuracy_change:+}" for row in rows],
        textposition="top center",
        textfont={"size": SMALL},
        hovertext=hover,
        hoverinfo="text",
        name="the PAPER'S own points",
        row=1,
        col=1,
    )
    figure.add_annotation(
        text="<b>The PAPER'S own points</b>: other models, trained adapters, change of average accuracy; "
        f"second-hand ({paper.SOURCE})",
        x=0,
        y=1,
        xref="x domain",
        yref="y domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": SMALL, "color": colors["ink"]},
    )


def write_figures(sweep: dict[str, Any], folder: Path, theme: str = "light") -> list[Path]:
    """Write `heatmaps.html` (a picture for each rule) and `pareto.html` (one for each quality); each works offline.

    Raises:
        LoraDropError: no such theme, or the folder cannot be written.
    """
    _check_theme(theme)
    chosen = groups(sweep) or [("any rule", "any part", "none")]
    pages = {
        "heatmaps.html": [sweep_heatmaps(sweep, *group, theme=theme) for group in chosen],
        "pareto.html": [pareto(sweep, quality, theme) for quality in QUALITIES],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figures in pages.items():
            (folder / name).write_text(_page(figures, theme), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise LoraDropError(f"cannot write the figures to {folder.name}: {error.strerror or error}.") from None
    return [folder / name for name in pages]


def _page(figures: list[go.Figure], theme: str) -> str:
    """A page with a figure on each screen; plotly.js is in it once."""
    bodies = [
        figure.to_html(CONFIG, full_html=False, include_plotlyjs=i == 0, default_height="100vh")
        for i, figure in enumerate(figures)
    ]
    style = f"body {{ margin: 0; background: {COLORS[theme]['panel']}; }}"
    head = f'<meta charset="utf-8"><title>LoRA-Drop sweep</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(bodies)}</body></html>\n'
