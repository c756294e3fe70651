"""A sweep's points in speed and quality, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.method.frontier import frontier
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.figures.style import (
    LEGEND_BELOW,
    SMALL,
    TEXT,
    axis_of,
    check_theme,
    compacted,
    hover_text,
    label_of,
    layout,
    message,
    provenance,
)
from lora_drop.run.results.rows import QUALITIES, Row, group_of, is_baseline, times, value_of

RULE_COLORS = {"state": "lora-drop", "anchor": "dropped", "residual": "baseline", "skip": "third"}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")


def pareto(
    sweep: dict[str, Any], quality: str = "agreement", theme: str = "light", compact: bool = False
) -> go.Figure:
    """Speed against quality, a trace for each (reuse, part, adapters); better is up and to the right.

    The Pareto front joins the points that no other beats in both. A thin line leads from each point to its bound, a
    hollow twin. The paper's own points have a strip of their own on the same speed axis: their accuracies of other
    models fit no quality axis of ours.

    Args:
        quality: `own` (loss on own answers), or on given texts `agreement` (same next token at LoRA steps) or
            `nll_gap` (all steps).
        theme: `light` or `dark`.
        compact: for a narrow panel that has a title of its own.
    """
    check_theme(theme)
    if quality not in QUALITIES:
        raise LoraDropError(f"quality must be one of {', '.join(QUALITIES)}; got {quality!r}.")
    colors, (column, y_title, _) = COLORS[theme], QUALITIES[quality]
    title = "LoRA-Drop sweep: speed against quality"
    dropping = [row for row in sweep.get("rows", []) if not is_baseline(row)]
    points = [row for row in dropping if None not in (value_of(row, "speedup"), value_of(row, column))]
    if not points:
        return message(theme, title, "This sweep has no point with a speed and a quality yet.")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.36, 0.64], vertical_spacing=0.06)
    _add_paper_strip(figure, colors)
    kinds = list(dict.fromkeys(group_of(row)[1:] for row in points))
    for group in dict.fromkeys(map(group_of, points)):
        own = [row for row in points if group_of(row) == group]
        color = colors[RULE_COLORS.get(group[0], "muted")]
        symbol = SYMBOLS[kinds.index(group[1:]) % len(SYMBOLS)]
        _add_group(figure, own, column, label_of(group), color, symbol)
    reads_down = quality != "agreement"
    sign = -1 if reads_down else 1
    front = frontier(points, lambda row: sign * row[column])
    add_front(figure, front, column, colors["ink"], _point_label, _spans_of(front, column), row=2, col=1)
    figure.add_vline(x=1, line={"color": colors["muted"], "width": 1}, row=2, col=1)
    missing = len(dropping) - len(points)
    subtitle = provenance(sweep) + (f" · {missing} points without a value are left out" if missing else "")
    figure.update_layout(layout(theme, title, subtitle), **LEGEND_BELOW)
    _set_axes(figure, points, colors, y_title, reads_down=reads_down)
    return _compacted(figure) if compact else figure


def add_front(
    figure: go.Figure,
    front: list[Row],
    column: str,
    ink: str,
    label: Callable[[Row], str],
    spans: tuple[float, float],
    **place: int,
) -> None:
    """The line through a front's points, slowest first, and a label at those that have room.

    Args:
        spans: lengths of the axes x and y, by which a label has room or not.
        place: a subplot's row and col.
    """
    figure.add_scatter(
        x=[row["speedup"] for row in front],
        y=[row[column] for row in front],
        mode="lines+text",
        line={"color": ink, "width": 2, "dash": "dot", "shape": "vh"},
        text=_front_labels(front, column, label, spans),
        textposition="top right",
        textfont={"size": SMALL},
        hoverinfo="skip",
        name="Pareto front",
        **place,
    )


def _point_label(row: Row) -> str:
    return f"p {row['drop_ratio']:g}, w {row['period']:g}"


def _set_axes(figure: go.Figure, points: list[Row], colors: dict[str, str], y_title: str, reads_down: bool) -> None:
    """The axes of both strips. A quality that `reads_down` is better the lower it is; any other is a share."""
    speeds = [1.0, *(row.speedup for row in paper.ROWS)]
    speeds += [value for row in points for name in ("speedup", "bound") if (value := value_of(row, name)) is not None]
    axis = axis_of(colors)
    figure.update_xaxes(range=[min(speeds) - 0.05, max(speeds) + 0.2], ticksuffix="x", **axis)
    figure.update_xaxes(title={"text": "times the full model's speed", "font": {"size": TEXT}}, row=2, col=1)
    figure.update_yaxes(automargin=True, **axis)
    figure.update_yaxes(range=[-0.4, len(paper.SHAPES)], row=1, col=1)  # room for the labels over the top marks
    figure.update_yaxes(title={"text": y_title, "font": {"size": TEXT}}, row=2, col=1)
    better = {"autorange": "reversed"} if reads_down else {"tickformat": ".0%"}
    figure.update_yaxes(row=2, col=1, **better)


def _compacted(figure: go.Figure) -> go.Figure:
    """No words at the points, and a bank's name on a line of its own."""
    figure.layout.annotations = ()
    figure.for_each_trace(
        lambda trace: trace.update(
            mode=trace.mode.replace("+text", ""), name=trace.name.replace(" · adapters ", "<br>adapters ")
        )
    )
    return compacted(figure).update_layout(margin={"b": 290, "t": 10})


def _add_points(
    figure: go.Figure, points: list[tuple], hover: list[str], bound: dict[str, Any], measured: dict[str, Any]
) -> None:
    """Points at their measured speeds, each with a hollow twin at its bound, at the end of a thin line.

    Args:
        points: (speed, bound, y) each.
        bound, measured: the looks of either trace.
    """
    marker = {"size": [0, 11, 0] * len(points), "opacity": 1, **bound.pop("marker")}
    figure.add_scatter(
        x=[x for speed, limit, _ in points for x in (speed, limit, None)],
        y=[y for *_, at in points for y in (at, at, None)],
        mode="lines+markers",
        line={"color": marker["color"], "width": 1},
        marker=marker,
        hovertext=[text for line in hover for text in ("", line, "")],
        hoverinfo="text",
        **bound,
    )
    x, _, y = zip(*points, strict=True)
    figure.add_scatter(x=x, y=y, hovertext=hover, hoverinfo="text", **measured)


def _add_group(figure: go.Figure, rows: list[Row], column: str, label: str, color: str, symbol: str) -> None:
    """The measured points of one rule, with their bounds."""
    place: dict[str, Any] = {"row": 2, "col": 1, "legendgroup": label}
    marker = {"symbol": f"{symbol}-open", "color": color}
    _add_points(
        figure,
        [(row["speedup"], value_of(row, "bound"), row[column]) for row in rows],
        [hover_text(row) for row in rows],
        {"name": f"{label}: bound", "showlegend": False, "marker": marker, **place},
        {"name": label, "mode": "markers", "marker": {"symbol": symbol, "size": 14, "color": color}, **place},
    )


def _front_labels(front: list[Row], column: str, label: Callable[[Row], str], spans: tuple[float, float]) -> list[str]:
    """A label for each point of the front that is clear of the last one labelled; hovering shows all."""
    across, up = spans
    labels, last = [], None
    for row in front:
        clear = last is None or (
            abs(row["speedup"] - last["speedup"]) > 0.15 * across or abs(row[column] - last[column]) > 0.06 * up
        )
        labels.append(f"\u2002{label(row)}" if clear else "")
        last = row if clear else last
    return labels


def _spans_of(front: list[Row], column: str) -> tuple[float, float]:
    """How far a front goes across and up."""
    across, up = ([row[name] for row in front] for name in ("speedup", column))
    return max(across) - min(across) or 1.0, max(up) - min(up) or 1.0


def _add_paper_strip(figure: go.Figure, colors: dict[str, str]) -> None:
    """The paper's rows above our points: a mark at each reported speed, hollow at the bound of that model's bytes."""
    rows = paper.ROWS
    hover = [
        f"<b>The paper's: {row.model}, p {row.drop_ratio:g}, k {row.k}</b><br>{paper.LABEL}<br>"
        f"average accuracy {row.accuracy_full} → {row.accuracy} ({row.accuracy_change:+} points)<br>"
        f"speed as reported {times(row.speedup)}; the bound of this model is {times(row.bound)}<br>"
        f"KV saved as reported about {row.kv_saved:.0%}; the exact formula gives at most {row.kv_limit:.0%}"
        for row in rows
    ]
    place: dict[str, Any] = {"row": 1, "col": 1}
    _add_points(
        figure,
        [(row.speedup, row.bound, row.model) for row in rows],
        hover,
        {
            "name": "hollow: the bound",
            "marker": {"symbol": "diamond-open", "color": colors["muted"]},
            **place,
        },
        {
            "name": "the PAPER'S own points",
            "mode": "markers+text",
            "marker": {"symbol": "line-ns-open", "size": 18, "color": colors["bad"], "line": {"width": 4}},
            "text": [f"p {row.drop_ratio:g}, k {row.k}: accuracy {row.accuracy_change:+}" for row in rows],
            "textposition": "top center",
            "textfont": {"size": SMALL},
            **place,
        },
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
