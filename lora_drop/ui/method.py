"""The Method tab: the idea in one drawing of the real schedule, the rules as formulas, and honest notes."""

from __future__ import annotations

from typing import Any

import gradio as gr


def build(facts: dict[str, Any]) -> None:
    """The tab's content, inside the layout's open `gr.Tab`.

    Args:
        facts: what `model_facts` tells of the loaded model.
    """
    gr.Markdown("Method")
