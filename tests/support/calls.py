"""The page's functions, called without a page."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import orjson
import pytest

from lora_drop.models.pool import ModelPool
from lora_drop.run.exports import html as replay
from lora_drop.run.exports.reading import work
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.controls import SHOWN, control_value
from lora_drop.ui.serve.reader import Reader
from tests.support.fuzzing import one_line


@pytest.fixture
def read_here(monkeypatch):
    """Traces are read in this process: a test of what is read needs no other one."""

    def here(self, job, texts, arguments):
        return json.dumps(work(job, texts, *arguments), allow_nan=False).encode()

    monkeypatch.setattr(Reader, "_elsewhere", here)


@pytest.fixture
def calls(tiny, monkeypatch, read_here):
    """The page's functions; a replay without its scripts, which are the same in each and megabytes."""
    monkeypatch.setattr(replay, "PLOTLY", Path(__file__))
    monkeypatch.setattr(replay, "import_map", lambda entry: "{}")
    return Callbacks(ModelPool(tiny))


def press_run(calls: Callbacks, visitor: Any, prompt: Any = "Why?", compare: Any = "", model: Any = None, **held: Any):
    """The Run button, with what the controls hold: as given, else their settings' defaults, on layers 1-4."""
    values = {one.name: control_value(one, one.default) for one in SHOWN} | {"layers": (1, 4)} | held
    return calls.run_page(visitor, compare, prompt, model, *(values[one.name] for one in SHOWN))


def refused(error: gr.Error) -> None:
    """What Gradio sends of a mistake is one line that its encoder takes."""
    one_line(error.message)
    orjson.dumps(error.message)
    assert not error.print_exception
