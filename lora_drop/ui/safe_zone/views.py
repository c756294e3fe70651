"""What the Safe zone tab draws: its map, the break-it dial, the Pareto figure and a sweep's progress bar.

Python decides every word, colour and mark; the page's scripts draw them.
"""

from __future__ import annotations

from typing import Any

from lora_drop.method import paper
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.quality import CRITERION
from lora_drop.run.exports.figures.sweep import PANELS, pareto
from lora_drop.run.results.preset_results import reads_well
from lora_drop.run.results.rows import QUALITIES, Group, Row, group_of, is_baseline, value_of, written
from lora_drop.run.results.safe_zone import (
    PROMPT,
    Band,
    Measure,
    Stop,
    answer_of,
    best_of,
    head_words,
    measures_of,
    prompts_of,
    setting_of,
)
from lora_drop.ui.components import Scripted
from lora_drop.ui.controls import control_values

Sweep = dict[str, Any]
NO_POINTS = "No point yet: run a sweep, and the points appear here one by one."
NO_STOPS = "This model was not measured yet: run the presets command, or a sweep."
NO_SPEEDS = "No speed was measured on this machine yet: run a sweep here, and this figure appears."


class SafeMap(Scripted):
    """The map over drop ratio and period. The value is a result of `map_of`, or a text that says why it is empty.

    The value is None until the tab is opened, which triggers `opened`. When a visitor chooses a cell, it triggers
    `input`, and `chosen` of the value has the cell's control values.
    """

    TEMPLATE, MOUNT = "safe_map.html", "mountSafeMap(element, props, watch, trigger, () => trigger('opened'))"


class Dial(Scripted):
    """The break-it dial. The value is a result of `dial_of`, a text or None; it triggers `input` as the map does."""

    TEMPLATE, MOUNT = "dial.html", "mountDial(element, props, watch, trigger)"


def map_of(sweep: Sweep | None, group: Group | None, head: Row | None = None) -> dict[str, Any] | str:
    """Value of the map: its sentence, the measures, and the cells, a row for each period.

    A cell has `texts` and `bands` (index in the measure's scale) by measure, None where it was not measured; its
    `marks` and `words`; and `setting`, the control values that run it.

    Args:
        head: of this machine's calibration, the full model with the screened head.
    """
    if not sweep or not group:
        return NO_POINTS

    def belongs(row: Row) -> bool:  # a baseline belongs to every map of its rule and part
        return group_of(row) == group or (is_baseline(row) and group_of(row)[:2] == group[:2])

    rows = list(filter(belongs, sweep["rows"]))
    if not rows:
        return NO_POINTS
    ratios, periods = (sorted({row[name] for row in rows}) for name in ("drop_ratio", "period"))
    by_place = {(row["drop_ratio"], row["period"]): row for row in rows}
    answer = answer_of(rows, prompts_of(sweep))
    front = {id(row) for row in best_of(rows)}
    layers = sweep.get("settings", {}).get("layers")
    measures = measures_of(rows)

    def cell(ratio: float, period: int) -> dict[str, Any]:
        row = by_place.get((ratio, period))
        marks = {
            "safe": row is not None and reads_well(row),
            "frontier": id(row) in front,
            "chosen": row is not None and row is answer.row and answer.is_safe,
            "nearest": row is not None and row is answer.row and not answer.is_safe,
            "zone": paper.in_safe_zone(ratio, period),
            "paper": bool(_paper_rows(ratio, period)),
        }
        return {
            "ratio": f"{ratio:g}",
            "period": f"{period:g}",
            "texts": {m.name: _text(row, m) for m in measures},
            "bands": {m.name: None if row is None else m.band_of(row) for m in measures},
            "marks": [name for name, holds in marks.items() if holds],
            "words": _cell_words(row, measures, ratio, period, marks),
            "setting": _controls(_config(row, rows, ratio, period), layers),
        }

    return {
        "answer": answer.text + head_words(answer.row, head),
        "safe": answer.is_safe,
        "note": measured_on(sweep),
        "criterion": CRITERION,
        "measures": [
            {"name": m.name, "label": m.label, "note": m.note, "scale": [_swatch(band) for band in m.bands]}
            for m in measures
        ],
        "first": next((m.name for m in measures if any(_text(row, m) for row in rows)), measures[0].name),
        "ratios": [f"{ratio:g}" for ratio in ratios],
        "cells": [[cell(ratio, period) for ratio in ratios] for period in periods],
        "paper": _paper_words(ratios, periods),
    }


def dial_of(stops: list[Stop]) -> dict[str, Any] | str:
    """Value of the dial: its stops with their words, samples and control values."""
    if not stops:
        return NO_STOPS
    return {
        "prompt": PROMPT,
        "criterion": CRITERION,
        "stops": [
            {
                "label": stop.label,
                "words": stop.words,
                "sample": stop.sample,
                "well": stop.reads_well,
                "setting": _controls(stop.config, None),
            }
            for stop in stops
        ],
    }


def measured_on(sweep: Sweep) -> str:
    """Sentence about a sweep's data, device and date."""
    data, device = sweep.get("data", {}), sweep.get("device", {})
    first: dict[str, Any] = next(iter(sweep["rows"]), {})
    tokens = first.get("tokens") or first.get("own_all_steps_count")
    size = f"{tokens:,} tokens of " if isinstance(tokens, int) else ""
    date = f", {str(sweep['date'])[:10]}" if sweep.get("date") else ""
    return f"Measured on {size}{data.get('file', 'unnamed data')}, {device.get('name', 'unnamed device')}{date}."


def _text(row: Row | None, measure: Measure) -> str | None:
    value = value_of(row, measure.column)
    return None if value is None else measure.form(value)


def _swatch(band: Band) -> dict[str, Any]:
    return {"tone": band.tone, "strength": band.strength, "words": band.words}


def _config(row: Row | None, rows: list[Row], ratio: float, period: int) -> LoraDropConfig | None:
    """Setting of a cell. Without a measurement it is a neighbour's setting with the cell's ratio and period."""
    if row is not None:
        return setting_of(row)
    like = next((other for other in rows if other["drop_ratio"] == ratio and not is_baseline(other)), None)
    like = like or next((other for other in rows if not is_baseline(other) and not other.get("drop_layers")), None)
    return setting_of(like | {"drop_ratio": ratio, "period": period}) if like else None


def _controls(config: LoraDropConfig | None, layers: Any) -> dict[str, Any] | None:
    """Control values of a setting; without a layer range, the control of the range stays as it is."""
    if config is None:
        return None
    layer_range = config.layers or _range_of(layers)
    values = control_values(config.replace(layers=layer_range or (1, 1)), 3)
    return values if layer_range else {name: value for name, value in values.items() if name != "layers"}


def _range_of(layers: Any) -> tuple[int, int] | None:
    """Layer range in a sweep's file; None if it has no valid one."""
    if isinstance(layers, list) and [type(bound) for bound in layers] == [int, int] and 1 <= layers[0] <= layers[1]:
        return layers[0], layers[1]
    return None


def _cell_words(row: Row | None, measures: list[Measure], ratio: float, period: int, marks: dict[str, bool]) -> str:
    place = f"Drop ratio {ratio:g}, period {period:g}"
    if row is None:
        return f"{place}: not measured. Press to run it."
    values = (f"{m.label.lower()} {'not measured' if (text := _text(row, m)) is None else text}" for m in measures)
    mark_words = {
        "safe": "reads well",
        "frontier": "no other cell is both faster and better",
        "chosen": "the one to choose",
        "nearest": "the nearest to safe",
        "zone": "in the paper's safe zone",
    }
    words = "; ".join(text for name, text in mark_words.items() if marks[name])
    return f"{place}: {', '.join(values)}. {words.capitalize()}{'. ' if words else ''}Press to run it."


def _paper_rows(ratio: float, period: int) -> list[paper.PaperRow]:
    return [row for row in paper.ROWS if (row.drop_ratio, row.period) == (ratio, period)]


def _paper_words(ratios: list[float], periods: list[int]) -> list[str]:
    """The paper's results at cells of the map, in words."""
    words = []
    for period in periods:
        for ratio in ratios:
            if rows := _paper_rows(ratio, period):
                speeds, changes = [row.speedup for row in rows], [row.accuracy_change for row in rows]
                words.append(
                    f"p {ratio:g}, period {period:g}: {min(speeds):.2f}× to {max(speeds):.2f}×, accuracy "
                    f"{min(changes):+.1f} to {max(changes):+.1f} points".replace("-", "−")
                )
    return words


class Figure(Scripted):
    """A figure in both themes and for two widths, so that the page follows both without a request.

    The value is a result of `pareto_of`, or a text that says why the figure is empty.
    """

    TEMPLATE, MOUNT = "figure.html", "mountFigure(element, props, watch)"


class Progress(Scripted):
    """A bar and a line of a fixed height: a `progress_value`."""

    TEMPLATE, MOUNT = "progress.html", "mountProgress(element, props, watch)"


def progress_value(kind: str, text: str, done: int = 0, total: int = 1) -> dict[str, Any]:
    """Value of `Progress`; the kinds are those of `status_value`."""
    return {"kind": kind, "text": text, "done": done, "total": total}


def pareto_of(sweep: Sweep | None, quality: str) -> dict[str, Any] | str:
    """Value of the Pareto figure, with another quality if the sweep does not have this one: its SVG in every variant,
    and its rows as the texts of a table."""
    if not sweep or not sweep["rows"]:
        return NO_POINTS
    if not any(value_of(row, "speedup") for row in sweep["rows"]):
        return NO_SPEEDS
    measured = [name for name, (column, *_) in QUALITIES.items() if any(row.get(column) for row in sweep["rows"])]
    if measured and quality not in measured:
        quality = measured[0]  # an older sweep has no free answers, a sweep of the page no reference texts
    note = f"{measured_on(sweep)} The paper's own points are marked as the paper's: other models, second-hand."
    columns = ["Rule", "Part", "Adapters", "Also set", "Drop ratio", "Period", *(panel[1] for panel in PANELS)]
    table = [
        [
            *(part or "–" for part in group_of(row)),
            *(f"{row[name]:g}" for name in ("drop_ratio", "period")),
            *(written(row, name, form) for name, _, form in PANELS),
        ]
        for row in sweep["rows"]
    ]
    variants = {
        name: {theme: pareto(sweep, quality, theme, name == "narrow") for theme in ("light", "dark")}
        for name in ("wide", "narrow")
    }
    return {"title": "Speed against quality, all rules", "note": note, "columns": columns, "rows": table} | variants
