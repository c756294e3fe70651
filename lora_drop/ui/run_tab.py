"""The Run tab: prompt, settings, what-if strip and the live view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_drop.method.fields import RUN
from lora_drop.method.presets import COMPARISONS, presets_for
from lora_drop.method.settings import BY_NAME, settings_of
from lora_drop.run.results.prompts import EXAMPLES
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.components import Compare, LiveView, PresetTable, Status, WhatIf
from lora_drop.ui.controls import LINKED, build_controls, control_value
from lora_drop.ui.facts import control_values
from lora_drop.ui.models_menu import menu_choices
from lora_drop.ui.serve import space as zero

FIRST_PROMPT = next(iter(EXAMPLES.values()))
SHOW_ME = "Show me"  # assets/js/controls/run_button.js makes it "Run" once a control was moved
INVITE = "Ready."


@dataclass
class RunTab:
    """The parts of the tab that events join.

    Args:
        controls: the settings' controls by name.
        examples: each button with the prompt that it brings.
        model: a control too; `Any`, as the types of Gradio's components do not name their events.
    """

    prompt: gr.Textbox
    examples: list[tuple[gr.Button, str]]
    run: gr.Button
    stop: gr.Button
    opened: gr.UploadButton
    status: Status
    model: Any
    preset: PresetTable
    compare: Compare
    live: LiveView
    controls: dict[str, Any]


def build_run_tab(calls: Callbacks, found: dict[str, Any]) -> RunTab:
    """The tab's content, inside the layout's open `gr.Tab`.

    Args:
        found: what `page_facts` says of the first model.
    """
    values = _first_values(calls, found)
    asked = _build_ask()
    with gr.Row(elem_id="ld-page", equal_height=False):
        # In the order of the keyboard and of a narrow page; a wide one has the settings at the left.
        with gr.Column(elem_id="ld-right"):
            live = LiveView(
                found["model"],
                *(calls.export_run, calls.inspector.for_page, calls.inspector.compare, calls.inspector.align),
                calls.recorded_run,
                elem_id="ld-live",
            )
        with gr.Column(elem_id="ld-left"):
            settings = _build_settings(calls, found, values)
    return RunTab(**asked, **settings, live=live)


def _first_values(calls: Callbacks, found: dict[str, Any]) -> dict[str, Any]:
    """What the controls hold when the page opens: the first preset's settings, and the run's defaults."""
    info = calls.pool.info(None)
    first = presets_for(info.id)[found["presets"]["default"]].config
    tokens = min(BY_NAME["max_new_tokens"].default, calls.limits.tokens)
    return {
        **control_values(first, info.num_layers),
        **{one.name: control_value(one, one.default) for one in settings_of(RUN)},
        "max_new_tokens": tokens,
        "compare": found["presets"]["show_me"]["compare"],
    }


def _build_ask() -> dict[str, Any]:
    with gr.Row(elem_id="ld-ask"):
        with gr.Column(elem_id="ld-question"):
            prompt = gr.Textbox(FIRST_PROMPT, label="Prompt", lines=1, max_lines=4, elem_id="ld-prompt")
            with gr.Row(elem_id="ld-examples"):
                examples = [(gr.Button(name, size="sm", min_width=0), text) for name, text in EXAMPLES.items()]
        with gr.Column(elem_id="ld-go"):
            with gr.Row(elem_id="ld-buttons"):
                run = gr.Button(SHOW_ME, variant="primary", elem_id="ld-run")
                stop = gr.Button("Stop", interactive=False, elem_id="ld-stop")
                opened = gr.UploadButton("Open trace", file_types=[".jsonl"], elem_id="ld-open")
            status = Status(INVITE, elem_id="ld-status")
        if notice := zero.notice():
            gr.HTML(notice, apply_default_css=False, elem_id="ld-zero")
    return {"prompt": prompt, "examples": examples, "run": run, "stop": stop, "opened": opened, "status": status}


def _build_settings(calls: Callbacks, found: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    pool, layers = calls.pool, calls.pool.info(None).num_layers
    with gr.Column(elem_id="ld-settings"):
        model: gr.components.Component
        if len(pool.labels) > 1:
            model = gr.Dropdown(menu_choices(pool), value=pool.first, label="Model", elem_id="ld-model")
        else:
            model = gr.Textbox(pool.first, label="Model", interactive=False, max_lines=1, elem_id="ld-model")
        preset = PresetTable(found["presets"], elem_id="ld-preset")
        controls = build_controls(True, values, layers)
        WhatIf(
            found["model"],
            values,
            found["settings"],
            calls.count_tokens(FIRST_PROMPT) or 0,
            calls.count_tokens,
            [one.facts for one in LINKED],
            elem_id="ld-whatif",
        )
        with gr.Accordion("More", open=False, elem_id="ld-advanced"):
            compare = Compare(
                found["presets"]["show_me"]["compare"],
                {name: {"button": c.button, "lane": c.lane} for name, c in COMPARISONS.items()},
                elem_id="ld-compare",
            )
            controls |= build_controls(False, values, layers)
    return {"model": model, "preset": preset, "compare": compare, "controls": controls}
