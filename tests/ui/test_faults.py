"""A fault under the page and under its API: the visitor reads one line, the next run is right."""

import gc
import json
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from gradio_client import Client

from lora_drop.adapters import find
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run.run import run
from lora_drop.run.trace.trace import Trace, gather, parse_trace
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.controls import SHOWN
from tests.support.calls import press_run
from tests.support.faults import PERIOD, TOKENS, asked, at, facts, fresh, nothing_left, raising, writing
from tests.support.server import api_client, launched

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("shipped")]

VISITOR = SimpleNamespace(session_hash="a visitor")
BUG = (RuntimeError, "secret detail")
MEMORY = (torch.OutOfMemoryError, "CUDA out of memory")


def pressed(callbacks: Callbacks) -> tuple[Trace | None, dict[str, str]]:
    """A press of Run: the trace that the page can export, None if there is none, and the last status line."""
    wanted, text, status = asked(), "", {}
    held = {**vars(wanted.config), **vars(wanted), "drop_layers": "", "refresh_entropy": ""}
    held = {name: value for name, value in held.items() if name in {one.name for one in SHOWN}}
    updates = press_run(callbacks, VISITOR, wanted.prompt, wanted.compare, **held)
    for update in updates:
        text = update[0] if isinstance(update[0], str) else text
        status = update[1]
    if not text:
        return None, status
    run_id = json.loads(text.splitlines()[0])["id"]
    return parse_trace(callbacks.export_run(run_id, "trace")["text"].encode()), status


FAULTS = {
    "bug": (raising(*BUG), "The run failed inside the app. The server's log has the details."),
    "memory": (raising(*MEMORY), "cpu ran out of memory with"),
    "nan": (writing(math.nan), "the logits of step "),
}
CASES = [(name, place) for name in FAULTS for place in ("prefill", "LoRA step", "third lane")]


@pytest.mark.parametrize(("name", "place"), [*CASES, ("bug", "audit"), ("memory", "audit")])
def test_the_page_names_a_fault_and_the_next_run_is_right(caches, capsys, name, place):
    fault, says = FAULTS[name]
    model = fresh("reference")
    callbacks, expected = Callbacks(ModelPool(model)), facts(gather(run(fresh("reference"), asked())))
    caches.clear()
    with nothing_left(caches):
        with pytest.MonkeyPatch.context() as patch:
            at(place, patch, fault)
            trace, status = pressed(callbacks)
        assert status["kind"] == "error" and status["text"].startswith(says) and "\n" not in status["text"]
        assert len(callbacks.stops) == 0
        assert trace is None or trace.summary is None, "what ran before it is kept, as a trace cut short"
        assert ("secret detail" in capsys.readouterr().err) == (name == "bug")
        trace, status = pressed(callbacks)
        assert status["kind"] == "done" and facts(trace) == expected
        assert len(callbacks.stops) == 0


@pytest.fixture(scope="module")
def app(bank_shelf) -> Iterator[tuple[Client, LoadedModel]]:
    """A launched app, and a client of it."""
    loaded = load_model("random:tiny-llama", "cpu", "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "SHIPPED_ADAPTERS", bank_shelf)
        with launched(ModelPool(loaded)) as (_, port):
            yield api_client(f"http://127.0.0.1:{port}/"), loaded


@pytest.mark.parametrize("name", FAULTS)
def test_a_client_of_the_app_reads_the_line_and_gets_the_next_run(app, caches, name):
    fault, says = FAULTS[name]
    client, _ = app
    wanted = asked()
    options = {"prompt": wanted.prompt, "period": PERIOD, "layers": "1-4", "drop_ratio": 1, "max_new_tokens": TOKENS}
    options |= {"view": wanted.view, "ignore_eos": True, "compare": wanted.compare, "api_name": "/generate"}
    with pytest.MonkeyPatch.context() as patch:
        at("LoRA step", patch, fault)
        with pytest.raises(Exception, match=re.escape(says)) as caught:
            client.predict(**options)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    trace = parse_trace(client.predict(**options).encode())
    fresh_one = load_model("random:tiny-llama", "cpu", "float32")
    assert facts(trace) == facts(gather(run(fresh_one, wanted)))
    gc.collect()  # Gradio's own frames, which held the generator
    assert caches and not [ref() for ref in caches if ref() is not None]
