"""Every event of the Run tab: which control calls what. What is called is in `callbacks`, or in the page's scripts."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from lora_drop.method.fields import SCHEDULE
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.components import ModelFacts
from lora_drop.ui.controls import SHOWN
from lora_drop.ui.run_tab import RunTab

# The page's load event comes before its components are mounted: wait for the last of them.
FROM_LINK = """async () => {
    while (!window.LoraDrop?.fromLink || !document.querySelector(".ld-whatif[data-state]"))
        await new Promise((done) => setTimeout(done, 50));
    return window.LoraDrop.fromLink();
}"""
# How an event that runs on the device waits in line and shows that it does.
ON_DEVICE = {
    "show_progress": "full",
    "concurrency_id": "gpu",
    "concurrency_limit": 1,
    "api_visibility": "private",
}


def join(demo: gr.Blocks, calls: Callbacks, tab: RunTab, chosen: ModelFacts, shown: gr.State) -> None:
    """Join the tab's controls with what they do.

    Args:
        chosen, shown: the facts of a model that was chosen from the menu, and the name of the one shown.
    """
    everything = [tab.controls[one.name] for one in SHOWN]
    rules = [tab.controls[one.name] for one in SHOWN if one.of == SCHEDULE]
    _join_settings(tab, rules, [tab.compare, *everything])
    _join_run(calls, tab, everything)
    _join_model(calls, tab, rules, chosen, shown)
    tab.opened.upload(
        calls.open_trace,
        tab.opened,
        [tab.live, tab.status],
        show_progress="full",
        show_progress_on=tab.status,
        api_visibility="private",
    )
    # A link restores every setting, in the browser; what it names wrongly is left alone, and named.
    demo.load(
        None,
        None,
        [tab.prompt, tab.compare, *everything, tab.model, tab.status],
        js=FROM_LINK,
        show_progress="hidden",
    )


def _join_settings(tab: RunTab, rules: list[Any], linked: list[Any]) -> None:
    """These run in the browser alone: the what-if strip follows every slider with no request to the server.

    Args:
        linked: the controls, in the order of `LINKED`.
    """
    gr.on(
        [control.change for control in linked],
        fn=None,
        inputs=linked,
        outputs=tab.preset,
        js="(...settings) => window.LoraDrop.settings(settings)",
    )
    # A visitor who moved something wants a run of that: "Show me" becomes "Run".
    gr.on([control.input for control in linked], fn=None, js="() => window.LoraDrop.moved()")
    # A visitor who moves the range or the ratio means them, not the exact layers that a preset may have set.
    spread = [tab.controls["layers"].input, tab.controls["drop_ratio"].input]
    gr.on(spread, fn=None, outputs=tab.controls["drop_layers"], js="() => ''")
    for button, text in tab.examples:
        button.click(None, None, tab.prompt, js=f"() => {json.dumps(text)}")
    tab.preset.input(None, tab.preset, rules, js="(name) => window.LoraDrop.preset(name)")
    tab.prompt.change(None, tab.prompt, None, js="(text) => window.LoraDrop.prompt(text)")


def _join_run(calls: Callbacks, tab: RunTab, everything: list[Any]) -> None:
    pressed = [tab.run.click, tab.prompt.submit]
    gr.on(pressed, fn=None, js="() => window.LoraDrop.asked()")  # while it waits, a recorded run plays
    started = gr.on(
        pressed,
        calls.run_page,
        [tab.compare, tab.prompt, tab.model, *everything],
        [tab.live, tab.status, tab.stop],
        show_progress_on=tab.status,
        **ON_DEVICE,
    )
    # What never reached `run_page`, or lost it: without this, the line would go on saying that all is well.
    refused = "The run did not start: the note says why, or the server cannot be reached. Try again in a moment."
    lost = "The connection was lost in the middle of the run: what came is kept below. Press Run to try again."
    words = f"window.LoraDrop.failed({json.dumps(refused)}, {json.dumps(lost)})"
    started.failure(None, None, tab.status, js=f"() => {words}", show_progress="hidden")
    # Not in the queue of runs: the soft flag ends the run after its step, and the run delivers what it has.
    tab.stop.click(calls.stop_page, None, None, queue=False, show_progress="hidden", api_visibility="private")


def _join_model(calls: Callbacks, tab: RunTab, rules: list[Any], chosen: ModelFacts, shown: gr.State) -> None:
    """Another model: its facts go to what the scripts draw, and then its preset's settings to the controls.

    A link brings settings of its own.
    """
    tab.model.input(None, None, None, js="() => window.LoraDrop.modelChosen()")
    # The files are brought here beside the queue of runs; a menu that went back to what is shown changes nothing.
    fetched = tab.model.change(
        calls.fetch_model,
        [tab.model, shown],
        [tab.status, tab.model, tab.stop],
        show_progress="hidden",
        concurrency_id="fetch",
        concurrency_limit=4,
        api_visibility="private",
    )
    fetched.success(
        calls.use_model,
        [tab.model, shown],
        [chosen, tab.status, tab.model, shown],
        show_progress_on=tab.status,
        **ON_DEVICE,
    )
    chosen.change(None, None, [tab.preset, *rules], js="() => window.LoraDrop.modelSettings()")
