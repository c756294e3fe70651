"""Measured methods side by side: the file of the `compare` command, and the sentence that says who wins."""

from __future__ import annotations

from typing import Any

from lora_drop.method.methods import method_of
from lora_drop.method.quality import READS_WELL_LOSS, loss_words
from lora_drop.run.results.store import Row


def reported(content: dict[str, Any]) -> list[Row]:
    """The rows that are reported, the fastest first."""
    rows = [row for row in content["rows"] if not row["is_search"] and row["speedup"] is not None]
    return sorted(rows, key=lambda row: -row["speedup"])


def label_of(row: Row) -> str:
    """The label of a row's method."""
    return method_of(row["method"])[1]


def is_lossless(row: Row) -> bool:
    """True if a row's method writes the full model's text."""
    return method_of(row["method"])[0].is_lossless


def text_of(row: Row) -> str:
    """What a method's text is, in words."""
    if is_lossless(row) and row["same_texts"] == row["texts"]:
        return "the full model's text"
    return f"regret {loss_words(row['regret'])}"


def winner_words(content: dict[str, Any]) -> str:
    """Who wins and where, in one sentence or two, from the rows alone."""
    rows = reported(content)
    if not rows:
        return "No method was measured yet."
    exact = [row for row in rows if is_lossless(row)]
    well = [row for row in rows if row["regret"] <= READS_WELL_LOSS]
    where = f"On {content['device']['name']}, over {rows[0]['texts']} prompts"
    first = f"{where}, {_best(exact)} among the methods that keep the full model's text"
    if well[:1] and well[0] not in exact and _gains(well[0]):
        second = f"Among all that read well (regret up to {READS_WELL_LOSS:g}), {_best(well)}"
    else:
        second = "No method that changes the text and still reads well is faster"
    fastest = rows[0]
    third = ""
    if fastest not in well and _gains(fastest):
        third = (
            f" {label_of(fastest)} is faster ({_speed(fastest)}), with a regret of {loss_words(fastest['regret'])}."
        )
    return f"{first}. {second}.{third}"


def _gains(row: Row) -> bool:
    """True if a method is surely faster than the full model."""
    return (row["speedup"] if row["speedup_low"] is None else row["speedup_low"]) > 1


def _best(rows: list[Row]) -> str:
    """The fastest of some rows, with those whose intervals do not tell them apart from it."""
    if not (rows and _gains(rows[0])):
        return "none is surely faster than the full model"
    best = rows[0]
    least = best["speedup"] if best["speedup_low"] is None else best["speedup_low"]
    near = [label_of(row) for row in rows[1:] if (row["speedup_high"] or row["speedup"]) >= least]
    level = f", level with {' and '.join(near)}," if near else ""
    return f"{label_of(best)} is the fastest ({_speed(best)}){level}"


def _speed(row: Row) -> str:
    low, high = row["speedup_low"], row["speedup_high"]
    return f"{row['speedup']:.2f}x" + ("" if low is None else f", {low:.2f} to {high:.2f}")
