"""The Method tab: the idea in one drawing of the real schedule, the rules as formulas, and honest notes."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.run.exports.scripts import TEMPLATES
from lora_drop.run.results.files import SWEEP
from lora_drop.run.results.rows import group_of
from lora_drop.ui.components import Scripted
from lora_drop.ui.safe_zone.callbacks import SHIPPED_SWEEP

PAPER_PERIOD, PAPER_RATIO = 4, 0.5  # the setting of the paper's safe zone that most of its rows have


class Method(Scripted):
    """The tab: drawings and a table from `assets/js/method`, which asks for the words when the tab is first opened."""

    def __init__(self, **kwargs: Any):
        def method_words(_: Any = None) -> dict[str, Any]:  # Gradio marks the function and hands on one argument
            return words()

        super().__init__(
            None,
            "method.html",
            "mountMethod(element, server)",
            server_functions=[method_words],
            **kwargs,
        )


@cache
def words() -> dict[str, Any]:
    """What the tab says: its words as HTML, the paper's rows with their label, and our own figures in words."""
    return {
        "words": (TEMPLATES / "method_words.html").read_text(encoding="utf-8"),
        "paper": paper_rows(),
        "label": f"These are {paper.LABEL}. Other and larger models, trained adapters of rank {paper.RANK}, accuracy "
        "averaged over tasks; the two columns after a “…” are computed here.",
        "ours": our_words(),
    }


def paper_rows() -> list[dict[str, Any]]:
    """The paper's rows, each with what its models' bytes and the exact KV formula allow."""
    computed = ("accuracy_change", "bound", "kv_limit")
    return [asdict(row) | {name: getattr(row, name) for name in computed} for row in paper.ROWS]


def our_words(path: Path = SHIPPED_SWEEP) -> str:
    """How far our own measurement at the paper's setting is from the paper's, from the stored sweep."""
    far = "This app's own figures, on a bundled model of 135M weights, are far from the paper's"
    try:
        ours, state = (_at_the_papers(SWEEP.read(path)["rows"], reuse) for reuse in ("residual", "state"))
        agreement, others = (row["lora_steps_top1_agreement"] for row in (ours, state))
        return (
            f"{far}. At p {PAPER_RATIO}, k {PAPER_PERIOD - 1} our residual rule with trained corrections has the full "
            f"model's next token at {agreement:.0%} of LoRA steps and loses {ours['all_steps_nll_gap']:.2f} nats per "
            f"token, at {ours['speedup']:.2f}× of at most {ours['bound']:.2f}×; the state rule agrees at "
            f"{others:.0%}. Such a small model has no layers to spare."
        )
    except (LoraDropError, KeyError, TypeError, ValueError):
        return f"{far}: the presets' table in the Run tab has them."


def _at_the_papers(rows: list[dict[str, Any]], reuse: str) -> dict[str, Any]:
    """The row of a rule at the paper's setting, with adapters. Raises ValueError: there is none."""
    for row in rows:
        rule, part, adapters, others = group_of(row)
        is_there = (row["drop_ratio"], row["period"]) == (PAPER_RATIO, PAPER_PERIOD)
        if is_there and (rule, part, others) == (reuse, "block", "") and adapters != "none":
            return row
    raise ValueError(reuse)
