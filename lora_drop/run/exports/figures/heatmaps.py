"""Heatmaps of a sweep over drop ratio and period."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lora_drop.method import paper
from lora_drop.run.exports.colors import BLACK, COLORS, WHITE
from lora_drop.run.exports.figures.style import (
    CELL,
    SMALL,
    TEXT,
    hover_text,
    label_of,
    layout,
    message,
    provenance,
)
from lora_drop.run.results.rows import AGREEMENT, NLL_GAP, Group, Row, group_of, is_baseline, percent, times, value_of

COLUMNS = 3
# (column, title, form), in reading order; the sixth place has the words.
PANELS = (
    AGREEMENT,
    NLL_GAP,
    ("kv_saved", "KV memory saved", percent),
    ("speedup", "Speed, measured", times),
    ("bound", "Speed, bound", times),
)


def sweep_heatmaps(sweep: dict[str, Any], group: Group, theme: str = "light") -> go.Figure:
    """Small multiples over (drop ratio, period) of one rule: quality, KV saved, measured speed and its bound.

    The cells hold the numbers; the paper's safe zone is outlined and labelled as the paper's claim.

    Args:
        sweep: the content of `sweep.json`; see `evaluation.sweep.read_sweep`.
        group: which rows; see `groups`.
        theme: `light` or `dark`.
    """
    cells = {
        (row["drop_ratio"], row["period"]): row
        for row in sweep.get("rows", [])
        if group_of(row) == group or (is_baseline(row) and group_of(row)[:2] == group[:2])
    }
    title = f"LoRA-Drop sweep: {label_of(group)}"
    if not cells:
        return message(theme, title, "This sweep has no point of this rule yet.")
    ratios, periods = (sorted(set(values)) for values in zip(*cells, strict=True))
    grid = [[cells.get((ratio, period)) for ratio in ratios] for period in periods]
    figure = make_subplots(
        rows=2,
        cols=COLUMNS,
        subplot_titles=[panel[1] for panel in PANELS],
        horizontal_spacing=0.06,
        vertical_spacing=0.2,
        specs=[[{}, {}, {}], [{}, {}, None]],
    )
    figure.update_annotations(font={"size": TEXT, "color": COLORS[theme]["ink"]})
    spans = _spans(cells.values())
    for n, panel in enumerate(PANELS):
        place = {"row": n // COLUMNS + 1, "col": n % COLUMNS + 1}
        _add_map(figure, theme, ratios, periods, grid, panel, spans.get(panel[0]), place)
        _outline_safe_zone(figure, COLORS[theme], ratios, periods, place)
    axis = {"type": "category", "showgrid": False, "title_standoff": 6, "title_font_size": TEXT}
    figure.update_xaxes(title_text="drop ratio p", **axis)
    figure.update_yaxes(title_text="period w = k + 1", **axis)
    figure.update_layout(layout(theme, title, provenance(sweep)), showlegend=False)
    return _add_words(figure, theme)


def _spans(rows: Iterable[Row]) -> dict[str, tuple[float, float]]:
    """The values at the ends of a panel's colours, where they are not its own extremes."""
    speeds = [value for row in rows for name in ("speedup", "bound") if (value := value_of(row, name))]
    # Speed and bound share a scale, so that a colour means the same in both; a share is out of 1.
    spans = dict.fromkeys(("speedup", "bound"), (min(speeds, default=1), max(speeds, default=1)))
    return spans | {AGREEMENT[0]: (0, 1), "kv_saved": (0, 1)}


def _add_map(
    figure: go.Figure,
    theme: str,
    ratios: list[float],
    periods: list[int],
    grid: list[list[Row | None]],
    panel: tuple[str, str, Callable[[float], str]],
    span: tuple[float, float] | None,
    place: dict[str, int],
) -> None:
    """One panel: coloured cells with their numbers."""
    name, _, form = panel
    colors = COLORS[theme]
    z = [[value_of(cell, name) for cell in line] for line in grid]
    flat = [(i, j, value) for j, line in enumerate(z) for i, value in enumerate(line)]
    low, top = span or (0, max((value for _, _, value in flat if value is not None), default=1))
    top = max(top, low + 0.01)  # a single value needs a range too
    scale = colors["grid"], colors["muted"]
    x, y = [f"{ratio:g}" for ratio in ratios], [f"{period:g}" for period in periods]
    figure.add_heatmap(
        x=x,
        y=y,
        z=z,
        zmin=low,
        zmax=top,
        hovertext=[["" if cell is None else hover_text(cell) for cell in line] for line in grid],
        hoverinfo="text",
        hoverongaps=False,
        colorscale=list(enumerate(scale)),
        showscale=False,
        xgap=3,
        ygap=3,
        name=name,
        **place,
    )
    inks = [colors["muted"] if v is None else _ink_on(scale, (v - low) / (top - low)) for _, _, v in flat]
    # Texts of their own: those of a heatmap have too little contrast on its middle tones.
    figure.add_scatter(
        x=[x[i] for i, _, _ in flat],
        y=[y[j] for _, j, _ in flat],
        text=["–" if value is None else form(value) for _, _, value in flat],
        mode="text",
        textfont={"size": CELL if len(ratios) < 5 else SMALL, "color": inks},
        hoverinfo="skip",
        **place,
    )


def _outline_safe_zone(
    figure: go.Figure, colors: dict[str, str], ratios: list[float], periods: list[int], place: dict[str, int]
) -> None:
    """A dashed line around the cells that the paper calls safe: a corner, since both lists ascend."""
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
    return BLACK if luminance > 0.179 else WHITE


def _add_words(figure: go.Figure, theme: str) -> go.Figure:
    """Words beside the maps: the outline, the bound, and the paper's own speeds."""
    lines = [
        "<b>Dashed: the paper's safe zone</b>",
        f"p ≤ {paper.SAFE_DROP_RATIO:g} and k ≤ {paper.SAFE_K}: its claim, for other",
        "and larger models, with trained adapters",
        "",
        "<b>The bound</b>",
        "bytes that the full model reads over",
        "those that LoRA-Drop reads, at batch 1",
        "",
        "<b>The paper's own speed</b> (second-hand)",
    ]
    for ratio, k in dict.fromkeys((row.drop_ratio, row.k) for row in paper.ROWS):
        rows = [row for row in paper.ROWS if (row.drop_ratio, row.k) == (ratio, k)]
        lines.append(f"p {ratio:g}, k {k}: {_range([row.speedup for row in rows])}")
        lines.append(f"    bound of its models {_range([row.bound for row in rows])}")
    return figure.add_annotation(
        text="<br>".join([*lines, "It may count what this bound does not."]),
        x=0.7,  # under the third column
        y=0.43,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="top",
        align="left",
        showarrow=False,
        font={"size": SMALL, "color": COLORS[theme]["ink"]},
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}x to {max(values):.2f}x"
