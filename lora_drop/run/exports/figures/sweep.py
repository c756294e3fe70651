"""Figures of a sweep: its map over drop ratio and period, and speed against quality.

Every number drawn comes from the results; the paper's (`lora_drop.method.paper`) are labelled as the paper's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError, one_line
from lora_drop.method import paper
from lora_drop.method.cost import human_bytes
from lora_drop.method.frontier import frontier
from lora_drop.paths import write_files
from lora_drop.run.exports.colors import BLACK, WHITE
from lora_drop.run.exports.figures.svg import SIGNS, Axes, Box, Key, Svg
from lora_drop.run.results.rows import (
    AGREEMENT,
    NLL_GAP,
    QUALITIES,
    Group,
    Row,
    group_of,
    groups,
    is_baseline,
    nats,
    percent,
    times,
    value_of,
    written,
)

WIDTH, NARROW, EDGE = 1280, 420, 24
TITLE, TEXT = 22, 14
# (column, title, form), in reading order; the sixth place has the words.
PANELS = (
    AGREEMENT,
    NLL_GAP,
    ("kv_saved", "KV memory saved", percent),
    ("speedup", "Speed, measured", times),
    ("bound", "Speed, bound", times),
)
MARKS = ("circle", *(sign for sign in SIGNS if sign != "tick"))
SPEED = "times the full model's speed"


def write_figures(sweep: dict[str, Any], folder: Path, theme: str = "light") -> list[Path]:
    """Write `map-1.svg` and so on, one for each rule, and `pareto-QUALITY.svg`, one for each quality.

    Raises:
        LoraDropError: no such theme, or the folder cannot be written.
    """
    chosen = groups(sweep) or [Group("any rule", "any part", "none", "")]
    drawn = {f"map-{number}.svg": sweep_map(sweep, group, theme) for number, group in enumerate(chosen, start=1)}
    drawn |= {f"pareto-{quality}.svg": pareto(sweep, quality, theme) for quality in QUALITIES}
    with one_line(f"cannot write the figures to {folder.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_files({folder / name: svg for name, svg in drawn.items()})
    return [folder / name for name in drawn]


def sweep_map(sweep: dict[str, Any], group: Group, theme: str = "light") -> str:
    """Small multiples over (drop ratio, period) of one rule: quality, KV saved, measured speed and its bound.

    Each cell shows its number. A frame marks the paper's safe zone, which is the paper's claim.

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
    svg, title = Svg(WIDTH, theme), f"LoRA-Drop sweep: {_label_of(group)}"
    top = heading(svg, title, provenance(sweep))
    if not cells:
        return message(svg, top, title, "This sweep has no point of this rule yet.")
    ratios, periods = (sorted(set(values)) for values in zip(*cells, strict=True))
    spans = _spans(cells.values())
    width, height = (WIDTH - 2 * EDGE) / 3, 60 + 44 * len(periods) + 44
    for number, panel in enumerate(PANELS):
        place = Box(EDGE + number % 3 * width, top + number // 3 * (height + 16), width - 20, height)
        _add_map(svg, place, ratios, periods, cells, panel, spans.get(panel[0]))
    lines = _map_words()
    for number, line in enumerate(lines):
        y = top + height + 16 + 18 * (number + 1)
        svg.text(EDGE + 2 * width, y, line.removeprefix("*"), 13, width=width, bold=line.startswith("*"))
    return svg.write(top + 16 + max(2 * height, height + 18 * (len(lines) + 1)) + EDGE, title)


def _spans(rows: Iterable[Row]) -> dict[str, tuple[float, float]]:
    """The values at the ends of a panel's colours, where they are not the panel's extremes."""
    speeds = [value for row in rows for name in ("speedup", "bound") if (value := value_of(row, name))]
    # Speed and bound share a scale, so that a colour means the same in both; a share is out of 1.
    spans = dict.fromkeys(("speedup", "bound"), (min(speeds, default=1), max(speeds, default=1)))
    return spans | {AGREEMENT[0]: (0, 1), "kv_saved": (0, 1)}


def _add_map(
    svg: Svg,
    box: Box,
    ratios: list[float],
    periods: list[float],
    cells: dict[tuple[float, float], Row],
    panel: tuple[str, str, Callable[[float], str]],
    span: tuple[float, float] | None,
) -> None:
    """One panel: coloured cells with their numbers, the longest period at the top."""
    name, title, form = panel
    values = {place: value for place, row in cells.items() if (value := value_of(row, name)) is not None}
    low, top = span or (0, max(values.values(), default=1))
    top = max(top, low + 0.01)  # a single value needs a range too
    svg.text(box.x + 40, box.y + 18, title, 15, width=box.width - 40, bold=True)
    left, across, bottom = box.x + 40, (box.width - 40) / len(ratios), box.y + 30 + 44 * len(periods)
    for row, period in enumerate(periods):
        y = bottom - 44 * (row + 1)
        svg.text(left - 8, y + 27, f"{period:g}", 13, "muted", text_anchor="end")
        for column, ratio in enumerate(ratios):
            cell, value = cells.get((ratio, period)), values.get((ratio, period))
            tint, ink = _tint(svg, 0 if value is None else (value - low) / (top - low))
            place = Box(left + across * column + 1.5, y + 1.5, across - 3, 41)
            svg.rect(place, "none" if value is None else tint, _words_of(cell) if cell else "")
            text, fill = ("–", "muted") if value is None else (form(value), ink)
            size = 17 if len(ratios) < 5 else 13
            svg.text(place.x + place.width / 2, y + 28, text, size, fill, text_anchor="middle")
    for column, ratio in enumerate(ratios):
        svg.text(left + across * (column + 0.5), bottom + 18, f"{ratio:g}", 13, "muted", text_anchor="middle")
    middle = left + (box.width - 40) / 2
    svg.text(middle, bottom + 36, "across: drop ratio p, up: period w", 13, "muted", text_anchor="middle")
    safe = (
        sum(ratio <= paper.SAFE_DROP_RATIO for ratio in ratios),
        sum(period - 1 <= paper.SAFE_K for period in periods),
    )
    if all(safe):  # a corner, since both lists ascend
        zone = Box(left, bottom - 44 * safe[1], across * safe[0], 44 * safe[1])
        look = {"stroke": svg.color("ink"), "stroke_width": 2.5, "stroke_dasharray": "7 5"}
        svg.rect(zone, "none", "the paper's safe zone", **look)


def _tint(svg: Svg, share: float) -> tuple[str, str]:
    """A map's colour at a share of its scale, and black or white, whichever reads better on it: a contrast of 4.5."""
    share = min(max(share, 0), 1)
    ends = [[int(svg.color(name)[i : i + 2], 16) for i in (1, 3, 5)] for name in ("grid", "muted")]
    mixed = [round(a + share * (b - a)) for a, b in zip(*ends, strict=True)]
    linear = [c / 12.92 if (c := part / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for part in mixed]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#" + "".join(f"{part:02X}" for part in mixed), BLACK if luminance > 0.179 else WHITE


def _map_words() -> list[str]:
    """Words beside the maps: the outline, the bound, and the paper's speeds; `*` begins a heading."""
    lines = [
        "*Dashed: the paper's safe zone",
        f"p ≤ {paper.SAFE_DROP_RATIO:g} and k ≤ {paper.SAFE_K}: its claim, for other and larger",
        "models, with trained adapters",
        "*The bound",
        "bytes that the full model reads over those",
        "that LoRA-Drop reads, at batch 1",
        "*The paper's own speed (second-hand)",
    ]
    for ratio, k in dict.fromkeys((row.drop_ratio, row.k) for row in paper.ROWS):
        rows = [row for row in paper.ROWS if (row.drop_ratio, row.k) == (ratio, k)]
        speeds, bounds = (_range([getattr(row, name) for row in rows]) for name in ("speedup", "bound"))
        lines += [f"p {ratio:g}, k {k}: {speeds}", f"\u2003bound of its models {bounds}"]
    return [*lines, "How p and k are read decides: see Method."]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}x to {max(values):.2f}x"


def pareto(sweep: dict[str, Any], quality: str = "agreement", theme: str = "light", narrow: bool = False) -> str:
    """Speed against quality, a sign for each (reuse, part, adapters); better is up and to the right.

    The Pareto front joins the points that no other beats in both. A thin line leads from each point to its bound, a
    hollow twin. The paper's points have a separate strip on the same speed axis: their accuracies of other
    models fit no quality axis of ours.

    Args:
        quality: `own` (loss on own answers), or on given texts `agreement` (same next token at LoRA steps) or
            `nll_gap` (all steps).
        theme: `light` or `dark`.
        narrow: for a narrow panel that has a separate title.
    """
    if quality not in QUALITIES:
        raise LoraDropError(f"quality must be one of {', '.join(QUALITIES)}; got {quality!r}.")
    column, y_title, _ = QUALITIES[quality]
    title = "LoRA-Drop sweep: speed against quality"
    dropping = [row for row in sweep.get("rows", []) if not is_baseline(row)]
    points = [row for row in dropping if None not in (value_of(row, "speedup"), value_of(row, column))]
    missing = len(dropping) - len(points)
    about = provenance(sweep) + (f" · {missing} points without a value are left out" if missing else "")
    svg = Svg(NARROW if narrow else WIDTH, theme)
    top = EDGE if narrow else heading(svg, title, about)
    if not points:
        return message(svg, top, title, "This sweep has no point with a speed and a quality yet.")
    speeds = [1.0, *(row.speedup for row in paper.ROWS)]
    speeds += [value for row in points for name in ("speedup", "bound") if (value := value_of(row, name)) is not None]
    left, span = EDGE + (90 if narrow else 130), (min(speeds) - 0.05, max(speeds) + 0.2)
    top = _add_paper(svg, Box(left, top, svg.width - left - EDGE, 0), span, narrow)
    values = [row[column] for row in points]
    low, high = spread(values)
    ends = (low, high) if quality == "agreement" else (high, low)  # a loss is better the lower it is
    axes = Axes(svg, Box(left, top + 16, svg.width - left - EDGE, 300 if narrow else 430), span, ends)
    axes.draw(SPEED, y_title, "{:g}x".format, percent if quality == "agreement" else "{:g}".format, size=TEXT - 2)
    keys = []
    for number, group in enumerate(dict.fromkeys(map(group_of, points))):
        sign = MARKS[number % len(MARKS)]
        keys.append(Key(_label_of(group), "lora-drop", sign))
        for row in (row for row in points if group_of(row) == group):
            bound = value_of(row, "bound")
            _add_point(axes, row["speedup"], bound, row[column], sign, "lora-drop", _words_of(row))
    front = frontier(points, lambda row: row[column] if quality == "agreement" else -row[column])
    add_front(axes, front, column, None if narrow else "p {drop_ratio:g}, w {period:g}")
    svg.line([(axes.x(1), axes.box.y), (axes.x(1), axes.box.y + axes.box.height)], "muted", 1)
    keys += [Key("hollow: the bound", "muted", "circle-open"), Key("the PAPER'S own points", "ink", "tick")]
    keys.append(Key("Pareto front", "ink", "dash"))
    bottom = svg.legend(EDGE, axes.box.y + axes.box.height + 48, keys, svg.width - 2 * EDGE, TEXT - 2)
    return svg.write(bottom + EDGE, title)


def spread(values: list[float]) -> tuple[float, float]:
    """Ends of an axis, with some room beyond the values."""
    room = 0.06 * (max(values) - min(values)) or 0.05
    return min(values) - room, max(values) + room


def _add_point(axes: Axes, speed: float, bound: float | None, value: float, sign: str, color: str, hover: str) -> None:
    """A point at its measured speed, with a hollow twin at its bound, at the end of a thin line."""
    x, y = axes.x(speed), axes.y(value)
    if bound is not None:
        axes.svg.line([(x, y), (axes.x(bound), y)], color, 0.8)
        axes.svg.mark(axes.x(bound), y, sign, color, 4, hollow=True, hover=hover)
    axes.svg.mark(x, y, sign, color, hover=hover)


def add_front(axes: Axes, front: list[Row], column: str, label: str | None) -> None:
    """The steps through a front's points, slowest first, and a label at each that is clear of the last one labelled.

    Args:
        label: a form for a row's columns; None writes none.
    """
    places = [(axes.x(row["speedup"]), axes.y(row[column])) for row in front]
    steps = [at for (x, _), (next_x, y) in itertools.pairwise(places) for at in ((x, y), (next_x, y))]
    axes.svg.line([*places[:1], *steps], "ink", 1.5, stroke_dasharray="2 4")
    last = (-math.inf, -math.inf)
    for row, (x, y) in zip(front, places, strict=True):
        if label and (abs(x - last[0]) > 150 or abs(y - last[1]) > 22):
            axes.svg.text(x + 8, y - 8, label.format_map(row), TEXT - 1)
            last = x, y


def _add_paper(svg: Svg, box: Box, span: tuple[float, float], narrow: bool) -> float:
    """The paper's rows above our points: a mark at each reported speed, hollow at the bound of that model's bytes."""
    words = f"The PAPER'S own points: other models, trained adapters, accuracy; second-hand ({paper.SOURCE})"
    top = svg.paragraph(EDGE, box.y, words, svg.width - 2 * EDGE, TEXT - 2) + 8
    models = list(dict.fromkeys(row.model for row in paper.ROWS))
    axes = Axes(svg, Box(box.x, top, box.width, 36 * len(models)), span, (len(models) - 0.4, -0.6))
    svg.rect(axes.box, "page")
    for row in paper.ROWS:
        at = models.index(row.model)
        hover = (
            f"The paper's: {row.model}, p {row.drop_ratio:g}, k {row.k}\n{paper.LABEL}\n"
            f"average accuracy {row.accuracy_full} → {row.accuracy} ({row.accuracy_change:+} points)\n"
            f"speed as reported {times(row.speedup)}; the bound of this model is {times(row.bound)}, "
            f"by other readings of p and k {' or '.join(map(times, row.bounds[1:]))}\n"
            f"KV saved as reported about {row.kv_saved:.0%}; the exact formula gives at most {row.kv_limits[0]:.0%}, "
            f"by the other readings {' or '.join(map('{:.0%}'.format, row.kv_limits[1:]))}"
        )
        x, y = axes.x(row.speedup), axes.y(at)
        svg.line([(x, y), (axes.x(row.bound), y)], "muted", 0.8)
        svg.mark(axes.x(row.bound), y, "diamond", "muted", 4, hollow=True, hover=hover)
        svg.mark(x, y, "tick", "ink", hover=hover)
        if not narrow:
            accuracy = f"p {row.drop_ratio:g}, k {row.k}: accuracy {row.accuracy_change:+}"
            svg.text(x - 8, y - 6, accuracy, TEXT - 3, text_anchor="end")
    for at, model in enumerate(models):
        svg.text(box.x - 8, axes.y(at) + 4, model, TEXT - 2, "muted", text_anchor="end")
    return axes.box.y + axes.box.height


def _words_of(row: Row) -> str:
    """All figures of a row of a sweep, in lines."""
    decimals, ms, count = "{:.3f}".format, "{:.1f} ms".format, "{:g}".format
    lines = [
        _label_of(group_of(row)),
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
    return "\n".join(lines)


def _label_of(group: Group) -> str:
    return " · ".join(group.words)


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
    return " · ".join(map(str, parts))


def heading(svg: Svg, title: str, subtitle: str) -> float:
    """Title and subtitle of a figure; returns their bottom."""
    svg.text(EDGE, EDGE + TITLE, title, TITLE, width=svg.width - 2 * EDGE, bold=True)
    svg.text(EDGE, EDGE + TITLE + 24, subtitle, TEXT, "muted", svg.width - 2 * EDGE)
    return EDGE + TITLE + 40


def message(svg: Svg, top: float, label: str, words: str) -> str:
    """A figure with a message and no data."""
    svg.text(svg.width / 2, top + 60, words, TEXT, width=svg.width - 2 * EDGE, text_anchor="middle")
    return svg.write(top + 120, label)
