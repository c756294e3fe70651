"""Speed against quality: the points of a sweep, or the settings of a search, with the front that no other beats."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.method.frontier import frontier
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.figures.style import (
    COMPACT,
    LEGEND_BELOW,
    SMALL,
    TEXT,
    axis_of,
    hover_text,
    label_of,
    layout,
    message,
    provenance,
    safe,
)
from lora_drop.run.results.rows import QUALITIES, Row, group_of, is_baseline, percent, times, value_of, written

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "cross", "triangle-down", "hexagon")
# Of a search.
GROUPED = ("refresh", "accept", "head")
HEAD_ONLY = "full model, screened head (not LoRA-Drop's gain)"
BEYOND = 3  # how many times the worst loss of a candidate an earlier preset may lose, to have room in the figure
SEARCH_TITLE = "LoRA-Drop settings: speed against quality loss"


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
    for n, group in enumerate(dict.fromkeys(map(group_of, points))):
        own = [row for row in points if group_of(row) == group]
        _add_group(figure, own, column, label_of(group), colors["lora-drop"], SYMBOLS[n % len(SYMBOLS)])
    reads_down = quality != "agreement"
    sign = -1 if reads_down else 1
    front = frontier(points, lambda row: sign * row[column])
    across, up = ([row[name] for row in front] for name in ("speedup", column))
    spans = max(across) - min(across) or 1.0, max(up) - min(up) or 1.0
    _add_front(figure, front, column, colors["ink"], "p {drop_ratio:g}, w {period:g}", spans, row=2, col=1)
    figure.add_vline(x=1, line={"color": colors["muted"], "width": 1}, row=2, col=1)
    missing = len(dropping) - len(points)
    subtitle = provenance(sweep) + (f" · {missing} points without a value are left out" if missing else "")
    figure.update_layout(layout(theme, title, subtitle), **LEGEND_BELOW)
    _set_axes(figure, points, colors, y_title, reads_down=reads_down)
    return _compacted(figure) if compact else figure


def _add_front(
    figure: go.Figure, front: list[Row], column: str, ink: str, label: str, spans: tuple[float, float], **place: int
) -> None:
    """The line through a front's points, slowest first, and a label at each that is clear of the last one labelled.

    Args:
        label: a form for a row's columns.
        spans: lengths of the axes x and y, by which a label has room or not.
        place: a subplot's row and col.
    """
    across, up = spans
    labels: list[str] = []
    last = None
    for row in front:
        clear = last is None or (
            abs(row["speedup"] - last["speedup"]) > 0.15 * across or abs(row[column] - last[column]) > 0.06 * up
        )
        labels.append(f"\u2002{label.format_map(row)}" if clear else "")
        last = row if clear else last
    figure.add_scatter(
        x=[row["speedup"] for row in front],
        y=[row[column] for row in front],
        mode="lines+text",
        line={"color": ink, "width": 2, "dash": "dot", "shape": "vh"},
        text=labels,
        textposition="top right",
        textfont={"size": SMALL},
        hoverinfo="skip",
        name="Pareto front",
        **place,
    )


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
    """The figure for a narrow panel that has a heading of its own: no title, no words at the points, smaller texts.

    A bank's name has a line of its own.
    """
    figure.layout.annotations = ()
    figure.for_each_trace(
        lambda trace: trace.update(
            mode=trace.mode.replace("+text", ""), name=trace.name.replace(" · adapters ", "<br>adapters ")
        )
    )
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.title.font.size = round(TEXT * COMPACT)
    return figure.update_layout(
        title=None,
        font_size=TEXT * COMPACT,
        margin={"l": 50, "r": 12, "t": 10, "b": 290},
        hoverlabel_font_size=SMALL * COMPACT,
        legend_font_size=SMALL * COMPACT,
    )


def _add_points(
    figure: go.Figure, points: list[tuple], hover: list[str], bound: dict[str, Any], measured: dict[str, Any]
) -> None:
    """Points at their measured speeds, each with a hollow twin at its bound, at the end of a thin line.

    Args:
        points: (speed, bound, y) each.
        bound: the looks of that trace.
        measured: the looks of the other trace.
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
        {"name": "hollow: the bound", "marker": {"symbol": "diamond-open", "color": colors["muted"]}, **place},
        {
            "name": "the PAPER'S own points",
            "mode": "markers+text",
            "marker": {"symbol": "line-ns-open", "size": 18, "color": colors["ink"], "line": {"width": 4}},
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


def frontier_figure(result: dict[str, Any]) -> go.Figure:
    """Measured speed, with its interval, against quality loss; better is up and to the right.

    A mark for each refresh and `accept`, hollow with a screened head. The full model with a screened head has a mark
    of its own and is no part of the front; nor are the presets of an earlier file, in grey.

    Args:
        result: `rows` with `loss` and `head_only`, `limits`, the `recommended` setting or None, and the rows `before`,
            with `preset` and `loss`.
    """
    colors = COLORS["light"]
    rows = [row for row in result["rows"] if None not in (value_of(row, "speedup"), value_of(row, "loss"))]
    if not rows:
        return message("light", SEARCH_TITLE, "No setting has a speed and a loss yet.")
    worst = max(row["loss"] for row in rows)
    losing = [row for row in result["before"] if value_of(row, "loss") is not None]
    before = [row for row in losing if row["loss"] <= BEYOND * worst]
    missing = f" · {len(losing) - len(before)} presets before lie below" if len(losing) > len(before) else ""
    figure = go.Figure(layout=layout("light", SEARCH_TITLE, provenance(result) + missing))
    names = [f"<b>before: {safe(row['preset'])}</b>" for row in before]
    _add_settings(figure, before, "presets before", colors["muted"], "x", names)
    candidates = [row for row in rows if not row["head_only"]]
    rules = sorted({(row["refresh"], row["accept"]) for row in candidates})
    for refresh, accept, head in sorted({tuple(row[name] for name in GROUPED) for row in candidates}):
        own = [row for row in candidates if tuple(row[name] for name in GROUPED) == (refresh, accept, head)]
        symbol = SYMBOLS[rules.index((refresh, accept)) % len(SYMBOLS)] + ("" if head == "full" else "-open")
        name = f"{safe(refresh)} · accept {accept:g} · head {safe(head)}"
        _add_settings(figure, own, name, colors["lora-drop"], symbol, [_words(row) for row in own])
    alone = [row for row in rows if row["head_only"]]
    _add_settings(figure, alone, HEAD_ONLY, colors["ink"], "star", [_words(row) for row in alone])
    front = frontier(candidates, lambda row: -row["loss"])
    columns = ("speedup", "speedup_low", "speedup_high")
    speeds = [one for row in rows for name in columns if (one := value_of(row, name)) is not None]
    spans = max(speeds) - min(speeds) or 1.0, max(row["loss"] for row in [*rows, *before]) or 1.0
    _add_front(figure, front, "loss", colors["ink"], "{layers_dropped} layers, w {period}", spans)
    _add_recommended(figure, [row for row in candidates if row["config"] == result["recommended"]], colors["good"])
    _add_limits(figure, result["limits"], colors["bad"])
    axis, font = axis_of(colors), {"size": TEXT}
    figure.update_xaxes(title={"text": "times the full model's speed", "font": font}, ticksuffix="x", **axis)
    label = "KL, nats per token (regret where accept is on)"
    figure.update_yaxes(title={"text": label, "font": font}, autorange="reversed", automargin=True, **axis)
    figure.add_vline(x=1, line={"color": colors["muted"], "width": 1})
    return figure.update_layout(**LEGEND_BELOW)


def _add_settings(figure: go.Figure, rows: list[Row], name: str, color: str, symbol: str, hover: list[str]) -> None:
    """Points with the interval of their speed; nothing where there are no rows."""
    if not rows:
        return
    speeds = [row["speedup"] for row in rows]
    low, high = ([value_of(row, name) or row["speedup"] for row in rows] for name in ("speedup_low", "speedup_high"))
    figure.add_scatter(
        x=speeds,
        y=[row["loss"] for row in rows],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, end - speed) for speed, end in zip(speeds, high, strict=True)],
            "arrayminus": [max(0.0, speed - end) for speed, end in zip(speeds, low, strict=True)],
            "thickness": 1,
            "width": 3,
        },
        mode="markers",
        marker={"symbol": symbol, "size": 13, "color": color},
        hovertext=hover,
        hoverinfo="text",
        name=name,
    )


def _add_recommended(figure: go.Figure, rows: list[Row], color: str) -> None:
    figure.add_scatter(
        x=[row["speedup"] for row in rows],
        y=[row["loss"] for row in rows],
        mode="markers",
        marker={"symbol": "circle-open", "size": 26, "color": color, "line": {"width": 3}},
        hoverinfo="skip",
        name="the fastest within the limit",
        showlegend=bool(rows),
    )


def _add_limits(figure: go.Figure, limits: dict[str, float], color: str) -> None:
    labels = {"loss": "limit", "regret": "limit with accept"}
    for name in ("loss",) if limits["loss"] == limits["regret"] else ("loss", "regret"):
        figure.add_hline(
            y=limits[name],
            line={"color": color, "width": 1, "dash": "dash"},
            annotation={"text": labels[name], "font": {"size": SMALL, "color": color}, "x": 1, "xanchor": "right"},
        )


def _words(row: Row) -> str:
    """The text at a point, as lines of plotly's HTML."""
    skipped = "the whole model, head screened" if row["head_only"] else f"{row['layers_dropped']} layers skipped"
    low, high = (written(row, name, times) for name in ("speedup_low", "speedup_high"))
    return "<br>".join(
        [
            f"<b>{skipped}, w {row['period']}, refresh {safe(row['refresh'])}, accept {row['accept']:g}</b>",
            f"head {safe(row['head'])}, early refresh at entropy {written(row, 'refresh_entropy', '{:g}'.format)}, "
            f"adapters {safe(row['adapters'])}",
            f"{'regret' if row['accept'] else 'quality loss'} {written(row, 'loss', '{:.3f}'.format)} nats per token",
            f"speed {written(row, 'speedup', times)} ({low} to {high}), bound {written(row, 'bound', times)}, "
            f"drafts accepted {written(row, 'accepted', percent)}, KV saved {written(row, 'kv_saved', percent)}",
        ]
    )
