"""What ui/gradio_private.py changes inside of Gradio is still there, and still does what is said of it."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path

import gradio as gr
import pytest
import safehttpx
from gradio import blocks, queueing, route_utils, routes, state_holder

import lora_drop.ui
from lora_drop.ui.components import FreeNumber, FreeSlider
from lora_drop.ui.gradio_private import Unread, ask_no_other_host, keep_few_sessions

CHANGED = "Gradio changed: see lora_drop/ui/gradio_private.py"


def test_gradio_still_keeps_values_by_this_method():
    method = inspect.signature(state_holder.SessionState._update_value_in_config)
    assert list(method.parameters) == ["self", "key", "value"], CHANGED
    assert "_update_value_in_config(" in inspect.getsource(blocks), CHANGED


def test_gradio_still_keeps_unread_messages_in_this_dict():
    with gr.Blocks() as demo:
        pass
    demo.queue()
    assert isinstance(demo._queue.pending_messages_per_session, dict), CHANGED
    used = inspect.getsource(queueing) + inspect.getsource(routes)
    ways = set(re.findall(r"pending_messages_per_session(\.\w+|\[)", used))
    assert ways <= {"[", ".get"}, CHANGED  # what Unread has a way of its own for, or leaves to the dict
    keep_few_sessions(demo)
    assert isinstance(demo._queue.pending_messages_per_session, Unread)
    parameters = inspect.signature(gr.Blocks.launch).parameters
    assert "state_session_capacity" in parameters, CHANGED


def test_gradio_still_checks_addresses_by_this_function(monkeypatch):
    monkeypatch.setattr(safehttpx, "async_validate_url", safehttpx.async_validate_url)  # put back afterwards
    assert inspect.iscoroutinefunction(safehttpx.async_validate_url), CHANGED
    assert "safehttpx.async_validate_url(" in inspect.getsource(route_utils), CHANGED
    ask_no_other_host()
    with pytest.raises(ValueError, match="asks no other host"):
        asyncio.run(safehttpx.async_validate_url("example.com"))


def test_a_component_of_ours_is_still_drawn_as_its_parent():
    assert (FreeSlider().get_block_name(), FreeNumber().get_block_name()) == ("slider", "number")


def test_no_other_module_of_the_page_reaches_inside_of_gradio():
    for path in Path(lora_drop.ui.__file__).parent.glob("*.py"):
        if path.name != "gradio_private.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<!self)(?<!cls)\._(?!_)\w", text), path.name
            assert not re.search(r"^(from gradio|import gradio\.)", text, re.M), path.name
