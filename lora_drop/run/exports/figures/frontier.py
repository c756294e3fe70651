"""The settings of a search in speed and loss, and the front that no other setting beats."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from lora_drop.method.frontier import frontier
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.figures.pareto import add_front
from lora_drop.run.exports.figures.style import (
    LEGEND_BELOW,
    SMALL,
    TEXT,
    axis_of,
    check_theme,
    layout,
    message,
    provenance,
    safe,
)
from lora_drop.run.results.rows import Row, percent, times, value_of, written

ACCEPT_COLORS = ("lora-drop", "baseline", "refresh", "third", "dropped-kv")
SYMBOLS = {"full": "circle", "screened": "diamond"}
HEAD_ONLY = "full model, screened head (not LoRA-Drop's gain)"
BEFORE = "presets before"
SPEEDS = ("speedup", "speedup_low", "speedup_high")
BEYOND = 3  # how many times the worst loss of a candidate an earlier preset may lose, to have room in the figure
TITLE = "LoRA-Drop settings: speed against quality loss"


def frontier_figure(result: dict[str, Any], theme: str = "light") -> go.Figure:
    """Measured speed, with its interval, against quality loss; better is up and to the right.

    A colour for each refresh and `accept`, a mark for each head. The full model with a screened head has a mark of its
    own and is no part of the front; nor are the presets of an earlier file, in grey.

    Args:
        result: `rows` with `loss` and `head_only`, `limits`, the `recommended` setting or None, and the rows `before`,
            with `preset` and `loss`.
        theme: `light` or `dark`.
    """
    check_theme(theme)
    colors = COLORS[theme]
    rows = [row for row in result["rows"] if None not in (value_of(row, "speedup"), value_of(row, "loss"))]
    if not rows:
        return message(theme, TITLE, "No setting has a speed and a loss yet.")
    worst = max(row["loss"] for row in rows)
    losing = [row for row in result["before"] if value_of(row, "loss") is not None]
    before = [row for row in losing if row["loss"] <= BEYOND * worst]
    missing = f" · {len(losing) - len(before)} presets before lie below" if len(losing) > len(before) else ""
    figure = go.Figure(layout=layout(theme, TITLE, provenance(result) + missing))
    _add_points(
        figure, before, BEFORE, colors["muted"], "x", [f"<b>before: {safe(row['preset'])}</b>" for row in before]
    )
    candidates = [row for row in rows if not row["head_only"]]
    rules = sorted({_rule(row) for row in candidates})
    for group in sorted({(_rule(row), row["head"]) for row in candidates}):
        own = [row for row in candidates if (_rule(row), row["head"]) == group]
        (refresh, accept), head = group
        color = colors[ACCEPT_COLORS[rules.index(group[0]) % len(ACCEPT_COLORS)]]
        name = f"{safe(refresh)} · accept {accept:g} · head {safe(head)}"
        _add_points(figure, own, name, color, SYMBOLS.get(head, "square"), [_words(row) for row in own])
    alone = [row for row in rows if row["head_only"]]
    _add_points(figure, alone, HEAD_ONLY, colors["ink"], "star", [_words(row) for row in alone])
    front = frontier(candidates, lambda row: -row["loss"])
    speeds = [one for row in rows for name in SPEEDS if (one := value_of(row, name)) is not None]
    spans = max(speeds) - min(speeds) or 1.0, max(row["loss"] for row in [*rows, *before]) or 1.0
    add_front(figure, front, "loss", colors["ink"], _label, spans)
    _add_recommended(figure, [row for row in candidates if row["config"] == result["recommended"]], colors["good"])
    _add_limits(figure, result["limits"], colors["bad"])
    axis, font = axis_of(colors), {"size": TEXT}
    figure.update_xaxes(title={"text": "times the full model's speed", "font": font}, ticksuffix="x", **axis)
    label = "Quality loss, nats per token (regret where accept is on)"
    figure.update_yaxes(title={"text": label, "font": font}, autorange="reversed", automargin=True, **axis)
    figure.add_vline(x=1, line={"color": colors["muted"], "width": 1})
    return figure.update_layout(**LEGEND_BELOW)


def _label(row: Row) -> str:
    return f"{row['layers_dropped']} layers, w {row['period']}"


def _rule(row: Row) -> tuple[str, float]:
    return row["refresh"], row["accept"]


def _add_points(figure: go.Figure, rows: list[Row], name: str, color: str, symbol: str, hover: list[str]) -> None:
    """Points with the interval of their speed; nothing where there are no rows."""
    if not rows:
        return
    ends = [[value_of(row, name) for name in ("speedup_low", "speedup_high")] for row in rows]
    figure.add_scatter(
        x=[row["speedup"] for row in rows],
        y=[row["loss"] for row in rows],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, (high or 0.0) - row["speedup"]) for row, (_, high) in zip(rows, ends, strict=True)],
            "arrayminus": [
                max(0.0, row["speedup"] - (row["speedup"] if low is None else low))
                for row, (low, _) in zip(rows, ends, strict=True)
            ],
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
