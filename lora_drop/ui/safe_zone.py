"""The Safe zone tab: what a grid of settings was measured to cost and to gain."""

from __future__ import annotations

import gradio as gr

from lora_drop.models import LoadedModel
from lora_drop.ui.callbacks import Callbacks


def build(loaded: LoadedModel, calls: Callbacks) -> None:
    """The tab's content, inside the layout's open `gr.Tab`."""
    gr.Markdown("Safe zone")
