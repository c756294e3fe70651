"""The Safe zone's map and the break-it dial as the page's scripts draw them: every word and decision is made here."""

from __future__ import annotations

import math
from typing import Any

from lora_drop.method import paper
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.quality import READS_WELL_LOSS
from lora_drop.run.results.dial import PROMPT, Stop
from lora_drop.run.results.rows import Group, group_of, is_baseline, value_of
from lora_drop.run.results.safe_zone import MEASURES, Measure, Row, answer_of, best_of, is_safe, setting_of
from lora_drop.ui.components import Scripted
from lora_drop.ui.facts import control_values

NO_POINTS = "No point yet: run a sweep, and it grows here point by point."
NO_STOPS = "Nothing was measured of this model yet: run the presets command, or a sweep."
WORST = 4  # doublings of the loss that reads well until a cell has no colour left


class SafeMap(Scripted):
    """The map over drop ratio and period; its value is `map_of`'s, or a text that says why there is nothing to see.

    It is None until the tab is opened, which triggers `opened`. Where a visitor chooses a cell, it triggers `input`:
    the value then has its control values as `chosen`.
    """

    def __init__(self, value: dict[str, Any] | str | None = None, **kwargs: Any):
        super().__init__(
            value, "safe_map.html", "mountSafeMap(element, props, watch, trigger, () => trigger('opened'))", **kwargs
        )


class Dial(Scripted):
    """The break-it dial; its value is `dial_of`'s, a text or None, and it triggers `input` as the map does."""

    def __init__(self, value: dict[str, Any] | str | None = None, **kwargs: Any):
        super().__init__(value, "dial.html", "mountDial(element, props, watch, trigger)", **kwargs)


def map_of(sweep: dict[str, Any] | None, group: Group | None) -> dict[str, Any] | str:
    """The map's value: the sentence, the measures, and a cell for each ratio and period, by period.

    A cell has the text and the shade (0 to 1) of each measure, None where it was not measured; what marks it; its
    words and the control values that run it.
    """
    if not sweep or not group:
        return NO_POINTS
    rows = [row for row in sweep["rows"] if group_of(row) == group or _is_shared(row, group)]
    if not rows:
        return NO_POINTS
    ratios, periods = (sorted({row[name] for row in rows}) for name in ("drop_ratio", "period"))
    found = {(row["drop_ratio"], row["period"]): row for row in rows}
    answer = answer_of(rows)
    front = {id(row) for row in best_of(rows)}
    layers = sweep.get("settings", {}).get("layers")
    top = max((value_of(row, "speedup") or 1.0 for row in rows), default=1.0)

    def cell(ratio: float, period: int) -> dict[str, Any]:
        row = found.get((ratio, period))
        marks = {
            "safe": row is not None and is_safe(row),
            "frontier": id(row) in front,
            "chosen": row is not None and row is answer.row and answer.is_safe,
            "nearest": row is not None and row is answer.row and not answer.is_safe,
            "zone": paper.in_safe_zone(ratio, period),
            "paper": bool(_paper_rows(ratio, period)),
        }
        return {
            "ratio": f"{ratio:g}",
            "period": f"{period:g}",
            "texts": {m.name: _text(row, m) for m in MEASURES},
            "shades": {m.name: _shade(row, m, top) for m in MEASURES},
            "marks": [name for name, holds in marks.items() if holds],
            "words": _cell_words(row, ratio, period, marks),
            "setting": _controls(_config(row, rows, ratio, period), layers),
        }

    return {
        "answer": answer.text,
        "safe": answer.is_safe,
        "note": measured_on(sweep),
        "measures": [{"name": m.name, "label": m.label, "note": m.note} for m in MEASURES],
        "first": next((m.name for m in MEASURES if any(_text(row, m) for row in rows)), MEASURES[0].name),
        "ratios": [f"{ratio:g}" for ratio in ratios],
        "cells": [[cell(ratio, period) for ratio in ratios] for period in periods],
        "paper": _paper_words(ratios, periods),
    }


def dial_of(stops: list[Stop]) -> dict[str, Any] | str:
    """The dial's value: its stops with their words, samples and control values."""
    if not stops:
        return NO_STOPS
    return {
        "prompt": PROMPT,
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


def measured_on(sweep: dict[str, Any]) -> str:
    """On what, where and when a sweep was measured."""
    data, device = sweep.get("data", {}), sweep.get("device", {})
    first: dict[str, Any] = next(iter(sweep["rows"]), {})
    tokens = first.get("tokens") or first.get("own_all_steps_count")
    size = f"{tokens:,} tokens of " if isinstance(tokens, int) else ""
    date = f", {str(sweep['date'])[:10]}" if sweep.get("date") else ""
    return f"Measured on {size}{data.get('file', 'unnamed data')}, {device.get('name', 'unnamed device')}{date}."


def _is_shared(row: Row, group: Group) -> bool:
    """What skips nothing belongs to every map of its rule."""
    return is_baseline(row) and group_of(row)[:2] == group[:2]


def _text(row: Row | None, measure: Measure) -> str | None:
    value = value_of(row, measure.column)
    return None if value is None else measure.form(value)


def _shade(row: Row | None, measure: Measure, top: float) -> float | None:
    """How good a value is, 0 to 1: what reads well, the map's best speed and all memory saved are 1."""
    value = value_of(row, measure.column)
    if value is None:
        return None
    if measure.name == "speed":
        share = (value - 1) / (top - 1) if top > 1 else 0.0
    elif measure.name == "memory":
        share = value
    else:
        share = 1 - math.log2(max(value, READS_WELL_LOSS) / READS_WELL_LOSS) / WORST
    return round(min(max(share, 0.0), 1.0), 3)


def _config(row: Row | None, rows: list[Row], ratio: float, period: int) -> LoraDropConfig | None:
    """The setting of a cell, also of one that was not measured: as its neighbours', with its own ratio and period."""
    if row is not None:
        return setting_of(row)
    like = next((other for other in rows if other["drop_ratio"] == ratio and not is_baseline(other)), None)
    like = like or next((other for other in rows if not is_baseline(other) and not other.get("drop_layers")), None)
    return setting_of(like | {"drop_ratio": ratio, "period": period}) if like else None


def _controls(config: LoraDropConfig | None, layers: Any) -> dict[str, Any] | None:
    """A setting as the page's controls hold it; the layer range only where it is known, else it stays as it is."""
    if config is None:
        return None
    known = config.layers or _range_of(layers)
    values = control_values(config.replace(layers=known or (1, 1)), 3)
    return values if known else {name: value for name, value in values.items() if name != "layers"}


def _range_of(layers: Any) -> tuple[int, int] | None:
    """The layer range that a sweep's file names; None where it names none."""
    if isinstance(layers, list) and [type(bound) for bound in layers] == [int, int] and 1 <= layers[0] <= layers[1]:
        return layers[0], layers[1]
    return None


def _cell_words(row: Row | None, ratio: float, period: int, marks: dict[str, bool]) -> str:
    place = f"Drop ratio {ratio:g}, period {period:g}"
    if row is None:
        return f"{place}: not measured. Press to run it."
    values = (f"{m.label.lower()} {'not measured' if (text := _text(row, m)) is None else text}" for m in MEASURES)
    said = {
        "safe": "it reads well",
        "frontier": "no other cell is both faster and better",
        "chosen": "the one to choose",
        "nearest": "the nearest to safe",
        "zone": "in the paper's safe zone",
    }
    told = [words for name, words in said.items() if marks[name]]
    return f"{place}: {', '.join(values)}. {'; '.join(told).capitalize()}{'. ' if told else ''}Press to run it."


def _paper_rows(ratio: float, period: int) -> list[paper.PaperRow]:
    return [row for row in paper.ROWS if (row.drop_ratio, row.period) == (ratio, period)]


def _paper_words(ratios: list[float], periods: list[int]) -> list[str]:
    """What the paper reports at cells of the map, as the paper's."""
    found = []
    for period in periods:
        for ratio in ratios:
            if rows := _paper_rows(ratio, period):
                speeds, changes = [row.speedup for row in rows], [row.accuracy_change for row in rows]
                found.append(
                    f"p {ratio:g}, period {period:g}: {min(speeds):.2f}× to {max(speeds):.2f}×, accuracy "
                    f"{min(changes):+.1f} to {max(changes):+.1f} points".replace("-", "−")
                )
    return found
