"""The page's functions, called without a page."""

from __future__ import annotations

import gradio as gr
import orjson
import pytest

from lora_drop.models.pool import Shelf
from lora_drop.run.exports import html as replay
from lora_drop.ui.events import Callbacks
from tests.support.fuzzing import one_line


@pytest.fixture
def calls(tiny, monkeypatch):
    """The page's functions; a replay without its scripts, which are the same in each and megabytes."""
    monkeypatch.setattr(replay, "_scripts", lambda: "")
    return Callbacks(Shelf(tiny))


def refused(error: gr.Error) -> None:
    """What Gradio sends of a mistake is one line that its encoder takes."""
    one_line(error.message)
    orjson.dumps(error.message)
    assert not error.print_exception
