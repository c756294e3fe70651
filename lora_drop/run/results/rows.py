"""Rows of results (a sweep, a search, a presets file): how each skips, which belong together, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lora_drop.run.report.words import rule_words

Row = dict[str, Any]
# Settings that, beside the rule and the adapters, are the same in all rows of a group.
OTHERS = ("kv", "refresh", "accept", "own_repeats", "head", "corrections", "drop_layers")


class Group(NamedTuple):
    """The rows that skip alike: they differ only in drop ratio and period."""

    reuse: str
    part: str
    adapters: str
    others: str  # those of `OTHERS` that differ from the paper's, in words

    @property
    def words(self) -> list[str]:
        """The way of skipping in words."""
        skipped = "attention only" if self.part == "attention" else "whole layers"
        trained = "no adapters" if self.adapters == "none" else f"adapters {self.adapters}"
        return [self.reuse, skipped, *([self.others] if self.others else []), trained]


percent, nats, times = "{:.1%}".format, "{:+.2f}".format, "{:.2f}x".format  # of shares, losses, ratios of speeds
# Column, title and form of each quality.
AGREEMENT = ("lora_steps_top1_agreement", "Same next token, LoRA steps", percent)
NLL_GAP = ("all_steps_nll_gap", "NLL gap, all steps (nats)", nats)
OWN_LOSS = ("own_all_steps_kl", "KL, own answers (nats)", nats)
QUALITIES = {"own": OWN_LOSS, "agreement": AGREEMENT, "nll_gap": NLL_GAP}


def groups(sweep: dict[str, Any]) -> list[Group]:
    """The ways of skipping that a sweep measured, in its order.

    Rows that skip nothing are the baseline and make a group only if no row skips anything.
    """
    rows = sweep.get("rows", [])
    skipping = dict.fromkeys(group_of(row) for row in rows if not is_baseline(row))
    return list(skipping or dict.fromkeys(map(group_of, rows)))


def group_of(row: Row) -> Group:
    """How a row skips: all but its drop ratio and period."""
    others = rule_words({name: row[name] for name in OTHERS if name in row})
    layers = ["chosen layers"] if row.get("drop_layers") else []
    return Group(row["reuse"], row["part"], row.get("adapters") or "not recorded", ", ".join([*others, *layers]))


def is_baseline(row: Row) -> bool:
    """Whether a row skips nothing."""
    return row["period"] == 1 or row.get("layers_dropped") == 0


def value_of(row: Row | None, name: str) -> float | None:
    """The row's finite number, or None."""
    value = row.get(name) if row else None
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def written(row: Row, name: str, form: Callable[[float], str]) -> str:
    """A row's number as text; a dash where there is none."""
    value = value_of(row, name)
    return "–" if value is None else form(value)
