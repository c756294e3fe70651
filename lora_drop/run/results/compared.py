"""Measured methods side by side: the file of the `compare` command, and the sentence that says who wins."""

from __future__ import annotations

from typing import Any

from lora_drop.method.methods import method_of
from lora_drop.method.quality import READS_WELL_LOSS, loss_words
from lora_drop.run.report.speed import speed_of
from lora_drop.run.results.store import Row


def reported(content: dict[str, Any]) -> list[Row]:
    """The rows that are reported, the fastest first."""
    rows = [row for row in content["rows"] if not row["is_search"] and row["speedup"] is not None]
    return sorted(rows, key=lambda row: -row["speedup"])


def label_of(row: Row) -> str:
    """The label of a row's method, for a sentence."""
    name, colon, values = method_of(row["method"])[1].partition(": ")
    return f"{name} ({values})" if colon else name


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
    limit = f"regret up to {READS_WELL_LOSS:g}"
    where = f"On {content['device']['name']}, over {rows[0]['texts']} prompts"
    first = f"{where}: of the methods that keep the full model's text, {_best(exact)}"
    if well[:1] and well[0] not in exact and _gains(well[0]):
        second = f"Of all that read well ({limit}), {_best(well)}"
    else:
        second = f"No method that changes the text and still reads well ({limit}) is faster"
    fastest = rows[0]
    third = ""
    if fastest not in well and _gains(fastest):
        third = (
            f" {label_of(fastest)} is faster ({_speed(fastest)}), with a regret of {loss_words(fastest['regret'])}."
        )
    return f"{first}. {second}.{third}"


def accepted_words(content: dict[str, Any]) -> str:
    """Why the methods that draft win or lose: the shares of their drafts that the full model accepts."""
    rows = [row for row in reported(content) if row["accepted"] is not None]
    shares = [f"{label_of(row)} {row['accepted']:.0%}" for row in sorted(rows, key=lambda row: -row["accepted"])]
    return (
        f"Drafts that the full model accepts: {'; '.join(shares)}. A rejected draft is work in vain." if rows else ""
    )


def repeats_words(content: dict[str, Any]) -> str:
    """The speeds on answers that repeat little and much, since drafts that copy gain by repetition alone."""
    rows = [row for row in reported(content) if row.get("by_repeats")]
    if not rows:
        return ""
    groups = list(dict.fromkeys(group for row in rows for group in row["by_repeats"]))

    def speeds(row: Row) -> str:
        values = (row["by_repeats"].get(group, {}).get("speedup") for group in groups)
        return ", ".join("–" if value is None else f"{value:.2f}x" for value in values)

    lines = "; ".join(f"{label_of(row)} {speeds(row)}" for row in rows)
    return f"Where the full model's answer repeats {', '.join(groups)} of its 4-grams: {lines}."


def _gains(row: Row) -> bool:
    """True if a method is surely faster than the full model."""
    return speed_of(row["speedup"], (row["speedup_low"] or 0.0, row["speedup_high"] or 0.0)) == "faster"


def _best(rows: list[Row]) -> str:
    """The fastest of some rows, with those whose intervals do not tell them apart from it."""
    if not (rows and _gains(rows[0])):
        return "none is surely faster than the full model"
    best = rows[0]
    near = [label_of(row) for row in rows[1:] if (row["speedup_high"] or row["speedup"]) >= best["speedup_low"]]
    level = f", level with {' and '.join(near)}" if near else ""
    why = "" if best["accepted"] is None else f", {best['accepted']:.0%} of its drafts accepted"
    return f"{label_of(best)} is the fastest ({_speed(best)}{why}){level}"


def _speed(row: Row) -> str:
    low, high = row["speedup_low"], row["speedup_high"]
    return f"{row['speedup']:.2f}x" + ("" if low is None else f", {low:.2f} to {high:.2f}")
