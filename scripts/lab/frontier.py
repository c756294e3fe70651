"""The figure of a search: measured speed against quality loss."""

from __future__ import annotations

from typing import Any

from lora_drop.method.frontier import frontier
from lora_drop.run.exports.figures.svg import Axes, Box, Key, Svg
from lora_drop.run.exports.figures.sweep import (
    EDGE,
    MARKS,
    SPEED,
    TEXT,
    WIDTH,
    add_front,
    heading,
    message,
    provenance,
    spread,
)
from lora_drop.run.results.rows import Row, percent, times, value_of, written

GROUPED = ("refresh", "accept", "head")
HEAD_ONLY = "full model, screened head (not LoRA-Drop's gain)"
BEYOND = 3  # how many times the worst loss of a candidate an earlier preset may lose, to have room in the figure


def frontier_figure(result: dict[str, Any], theme: str = "light") -> str:
    """Measured speed, with its interval, against quality loss; better is up and to the right.

    A sign for each refresh and `accept`, hollow with a screened head. The full model with a screened head has a sign
    of its own and is no part of the front; nor are the presets of an earlier file, in grey.

    Args:
        result: `rows` with `loss` and `head_only`, `limits`, the `recommended` setting or None, and the rows `before`,
            with `preset` and `loss`.
        theme: `light` or `dark`.
    """
    svg, title = Svg(WIDTH, theme), "LoRA-Drop settings: speed against quality loss"
    rows = [row for row in result["rows"] if None not in (value_of(row, "speedup"), value_of(row, "loss"))]
    worst = max((row["loss"] for row in rows), default=0)
    losing = [row for row in result["before"] if value_of(row, "loss") is not None]
    before = [row for row in losing if row["loss"] <= BEYOND * worst]
    missing = f" · {len(losing) - len(before)} presets before lie below" if len(losing) > len(before) else ""
    top = heading(svg, title, provenance(result) + missing)
    if not rows:
        return message(svg, top, title, "No setting has a speed and a loss yet.")
    names = ("speedup", "speedup_low", "speedup_high")
    speeds = [
        1.0,
        *(value for row in [*rows, *before] for name in names if (value := value_of(row, name)) is not None),
    ]
    limits = {result["limits"][name]: words for name, words in (("regret", "limit with accept"), ("loss", "limit"))}
    low, high = spread([row["loss"] for row in [*rows, *before]] + list(limits))
    axes = Axes(svg, Box(EDGE + 70, top + 8, WIDTH - 2 * EDGE - 70, 480), spread(speeds), (high, low))
    axes.draw(SPEED, "KL, nats per token (regret where accept is on)", "{:g}x".format, size=TEXT - 2)
    candidates = [row for row in rows if not row["head_only"]]
    rules = sorted({(row["refresh"], row["accept"]) for row in candidates})
    keys = [Key("presets before", "muted", "cross")] if before else []
    for row in before:
        _add_setting(axes, row, "cross", "muted", f"before: {row['preset']}")
    for refresh, accept, head in sorted({tuple(row[name] for name in GROUPED) for row in candidates}):
        sign = MARKS[rules.index((refresh, accept)) % len(MARKS)] + ("" if head == "full" else "-open")
        keys.append(Key(f"{refresh} · accept {accept:g} · head {head}", "lora-drop", sign))
        for row in candidates:
            if tuple(row[name] for name in GROUPED) == (refresh, accept, head):
                _add_setting(axes, row, sign, "lora-drop", _setting_words(row))
    for row in (row for row in rows if row["head_only"]):
        _add_setting(axes, row, "plus", "ink", _setting_words(row))
    keys += [Key(HEAD_ONLY, "ink", "plus")] if any(row["head_only"] for row in rows) else []
    add_front(axes, frontier(candidates, lambda row: -row["loss"]), "loss", "{layers_dropped} layers, w {period}")
    keys.append(Key("Pareto front", "ink", "dash"))
    for row in (row for row in candidates if row["config"] == result["recommended"]):
        svg.mark(axes.x(row["speedup"]), axes.y(row["loss"]), "circle", "good", 12, hollow=True)
        keys.append(Key("the fastest within the limit", "good", "circle-open"))
    right = axes.box.x + axes.box.width
    for limit, words in limits.items():
        y = axes.y(limit)
        svg.line([(axes.box.x, y), (right, y)], "bad", 1, stroke_dasharray="6 4")
        svg.text(right - 4, y - 5, words, TEXT - 2, "bad", text_anchor="end")
    svg.line([(axes.x(1), axes.box.y), (axes.x(1), axes.box.y + axes.box.height)], "muted", 1)
    bottom = svg.legend(EDGE, axes.box.y + axes.box.height + 48, keys, WIDTH - 2 * EDGE, TEXT - 2)
    return svg.write(bottom + EDGE, title)


def _add_setting(axes: Axes, row: Row, sign: str, color: str, hover: str) -> None:
    """A point with the interval of its speed."""
    low, high = (value_of(row, name) or row["speedup"] for name in ("speedup_low", "speedup_high"))
    y = axes.y(row["loss"])
    axes.svg.line([(axes.x(low), y), (axes.x(high), y)], color, 1)
    hollow = sign.endswith("-open")
    axes.svg.mark(axes.x(row["speedup"]), y, sign.removesuffix("-open"), color, hollow=hollow, hover=hover)


def _setting_words(row: Row) -> str:
    """The text at a point of a search, in lines."""
    skipped = "the whole model, head screened" if row["head_only"] else f"{row['layers_dropped']} layers skipped"
    low, high = (written(row, name, times) for name in ("speedup_low", "speedup_high"))
    return "\n".join(
        [
            f"{skipped}, w {row['period']}, refresh {row['refresh']}, accept {row['accept']:g}",
            f"head {row['head']}, early refresh at entropy {written(row, 'refresh_entropy', '{:g}'.format)}, "
            f"adapters {row['adapters']}",
            f"{'regret' if row['accept'] else 'quality loss'} {written(row, 'loss', '{:.3f}'.format)} nats per token",
            f"speed {written(row, 'speedup', times)} ({low} to {high}), bound {written(row, 'bound', times)}, "
            f"drafts accepted {written(row, 'accepted', percent)}, KV saved {written(row, 'kv_saved', percent)}",
        ]
    )
