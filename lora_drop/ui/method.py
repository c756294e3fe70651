"""The Method tab: the idea in one drawing of the real schedule, the rules as formulas, and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.run.exports.templates import TEMPLATES
from lora_drop.run.results.files import SWEEP
from lora_drop.run.results.rows import group_of
from lora_drop.ui.components import Scripted, server_function
from lora_drop.ui.facts import SHIPPED_SWEEP

COMPUTED = ("accuracy_change", "bounds", "kv_limits")  # of a row of the paper
PAPER_PERIOD, PAPER_RATIO = 4, 0.5  # the setting in the paper's safe zone that most of its rows have


class Method(Scripted):
    """The tab: drawings and a table by `assets/js/method`, which asks for the words when the tab is first opened.

    Args:
        pays: `where_it_pays` of the page.
    """

    TEMPLATE, MOUNT = "method.html", "mountMethod(element, server)"

    def __init__(self, value: None = None, pays: Callable[..., Any] | None = None, **kwargs: Any):
        functions = [server_function("method_words", lambda _: words())]
        functions += [server_function("where_it_pays", pays, 2)] if pays else []
        super().__init__(value, server_functions=functions, **kwargs)


@cache
def words() -> dict[str, Any]:
    """Content of the tab: its text as HTML, the paper's rows with their label, and our figures in words."""
    return {
        "words": (TEMPLATES / "method_words.html").read_text(encoding="utf-8"),
        # Each row has the bounds of its model's bytes and the exact KV formula too.
        "paper": [asdict(row) | {name: getattr(row, name) for name in COMPUTED} for row in paper.ROWS],
        "label": f"These are {paper.LABEL}. Other and larger models, trained adapters of rank {paper.RANK}, accuracy "
        "averaged over tasks; the bounds and the formula's KV are computed here, by four readings. "
        f"{paper.within_words()}",
        "ours": our_words(),
    }


def our_words(path: Path = SHIPPED_SWEEP) -> str:
    """Our measurement at the paper's setting, from the stored sweep, in words."""
    far = "This app's own figures, on a bundled model of 135M weights, are far from the paper's"
    try:
        sweep = SWEEP.read(path)
        ours, state = (_row_at_papers_setting(sweep["rows"], reuse) for reuse in ("residual", "state"))
        return (
            f"{far}. At p {PAPER_RATIO}, k {PAPER_PERIOD - 1} our residual rule with trained corrections has the full "
            f"model's next token at {ours['lora_steps_top1_agreement']:.0%} of LoRA steps and an NLL gap of "
            f"{ours['all_steps_nll_gap']:.2f} nats per token, at {ours['speedup']:.2f}× on "
            f"{sweep['device']['name']} (bound {ours['bound']:.2f}×); "
            f"the state rule agrees at {state['lora_steps_top1_agreement']:.0%}. Such a small model has no layers to "
            "spare."
        )
    except (LoraDropError, KeyError, TypeError, ValueError):
        return f"{far}: the presets' table in the Run tab has them."


def _row_at_papers_setting(rows: list[dict[str, Any]], reuse: str) -> dict[str, Any]:
    """The row of a rule at the paper's setting, with adapters. Raises ValueError if there is no such row."""
    for row in rows:
        rule, part, adapters, others = group_of(row)
        setting = row["drop_ratio"], row["period"], rule, part, others
        if setting == (PAPER_RATIO, PAPER_PERIOD, reuse, "block", "") and adapters != "none":
            return row
    raise ValueError(reuse)
