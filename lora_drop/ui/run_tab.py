"""The Run tab: its layout, and every event of it. The events call `callbacks`, or the page's scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.presets import COMPARISONS
from lora_drop.method.settings import BY_NAME, settings_of
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.prompts import EXAMPLES
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.components import (
    ON_DEVICE,
    Compare,
    LiveView,
    ModelFacts,
    OpenButton,
    Pays,
    PresetTable,
    Status,
    WhatIf,
    server_function,
    status_value,
)
from lora_drop.ui.controls import build_controls, control_value, control_values, linked
from lora_drop.ui.facts import menu_choices
from lora_drop.ui.serve import space as zero

FIRST_PROMPT = next(iter(EXAMPLES.values()))
SHOW_ME = "Show me"  # assets/js/controls/gradio.js makes it "Run" once a control was moved
INVITE = "Ready."
# Gradio's load event comes before the components are mounted: wait for the last of them.
FROM_LINK = """async () => {
    while (!window.LoraDrop?.fromLink || !document.querySelector(".ld-whatif[data-state]"))
        await new Promise((done) => setTimeout(done, 50));
    return window.LoraDrop.fromLink();
}"""


@dataclass
class RunTab:
    """The parts of the tab that events connect.

    Args:
        controls: the settings' controls by name.
        examples: each example button with its prompt.
        model: the models menu; `Any`, because the types of Gradio's components do not name their events.
    """

    prompt: gr.Textbox
    examples: list[tuple[gr.Button, str]]
    run: gr.Button
    stop: gr.Button
    opened: gr.UploadButton
    to_settings: gr.Button
    status: Status
    model: Any
    preset: PresetTable
    compare: Compare
    live: LiveView
    controls: dict[str, Any]


def build_run_tab(calls: Callbacks, facts: dict[str, Any]) -> RunTab:
    """Build the tab inside the open `gr.Tab`.

    Args:
        facts: `page_facts` of the first model.
    """
    values = _first_values(calls, facts)
    top = _build_ask()
    with gr.Row(elem_id="ld-page", equal_height=False):
        # In the order of the keyboard and of a narrow page; a wide page has the settings on the left.
        with gr.Column(elem_id="ld-right"):
            live = LiveView(
                model=facts["model"],
                server_functions=[
                    server_function("export_run", calls.export_run, 2),
                    server_function("inspect_step", calls.inspector.for_page, 3),
                    server_function("compare_runs", calls.inspector.compare),
                    server_function("align_answers", calls.inspector.align, 4),
                    server_function("recorded_run", lambda _: calls.recorded_run()),
                ],
                elem_id="ld-live",
            )
            Pays(server_functions=[server_function("where_it_pays", calls.where_it_pays, 2)], elem_id="ld-pays")
        with gr.Column(elem_id="ld-left"):
            settings = _build_settings(calls, facts, values)
    return RunTab(**top, **settings, live=live)


def _first_values(calls: Callbacks, facts: dict[str, Any]) -> dict[str, Any]:
    """Values of the controls when the page opens: the default preset's settings, and the run's defaults."""
    info = calls.pool.info(None)
    first = presets_of(info)[facts["presets"]["default"]].config
    tokens = min(BY_NAME["max_new_tokens"].default, calls.limits.tokens)
    return {
        **control_values(first, info.num_layers),
        **{setting.name: control_value(setting, setting.default) for setting in settings_of(RUN)},
        "max_new_tokens": tokens,
        "compare": facts["presets"]["show_me"]["compare"],
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
                opened = OpenButton("Open trace", file_types=[".jsonl"], elem_id="ld-open")
                to_settings = gr.Button("Settings", elem_id="ld-to-settings")  # on a narrow page
            status = Status(status_value("idle", INVITE), elem_id="ld-status")
        if notice := zero.notice():
            gr.HTML(notice, apply_default_css=False, elem_id="ld-zero")
    asked = {"prompt": prompt, "examples": examples, "run": run, "stop": stop, "status": status}
    return asked | {"opened": opened, "to_settings": to_settings}


def _build_settings(calls: Callbacks, facts: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    pool, layers = calls.pool, calls.pool.info(None).num_layers
    with gr.Column(elem_id="ld-settings"):
        model: gr.components.Component
        if len(pool.labels) > 1:
            model = gr.Dropdown(menu_choices(pool), value=pool.first, label="Model", elem_id="ld-model")
        else:
            model = gr.Textbox(pool.first, label="Model", interactive=False, max_lines=1, elem_id="ld-model")
        preset = PresetTable(
            facts["presets"]["default"],
            facts=facts["presets"],
            server_functions=[server_function("calibrated_presets", lambda _: calls.calibrated_presets())],
            elem_id="ld-preset",
        )
        main = [setting for setting in calls.settings if setting.main]
        controls = build_controls((setting for setting in main if setting.of == SCHEDULE), values, layers)
        WhatIf(
            model=facts["model"],
            settings=values,
            presets=facts["settings"],
            prompt_tokens=calls.count_tokens(FIRST_PROMPT) or 0,
            table=[setting.facts for setting in linked(calls.settings)],
            server_functions=[server_function("count_tokens", calls.count_tokens, 3)],
            elem_id="ld-whatif",
        )
        controls |= build_controls((setting for setting in main if setting.of == RUN), values, layers)
        with gr.Accordion("More", open=False, elem_id="ld-advanced"):
            compare = Compare(
                facts["presets"]["show_me"]["compare"],
                comparisons={name: {"button": c.button, "lane": c.lane} for name, c in COMPARISONS.items()},
                elem_id="ld-compare",
            )
            controls |= build_controls((setting for setting in calls.settings if not setting.main), values, layers)
    return {"model": model, "preset": preset, "compare": compare, "controls": controls}


def join(demo: gr.Blocks, calls: Callbacks, tab: RunTab, chosen: ModelFacts, current: gr.State) -> None:
    """Connect the tab's controls with their functions.

    Args:
        chosen: receives the facts of a model that was chosen from the menu.
        current: holds the name of the model that the page shows.
    """
    everything = [tab.controls[setting.name] for setting in calls.settings]
    rules = [tab.controls[setting.name] for setting in calls.settings if setting.of == SCHEDULE]
    _join_settings(tab, rules, [tab.compare, *everything])
    _join_run(calls, tab, everything)
    _join_model(calls, tab, rules, chosen, current)
    tab.opened.upload(
        calls.open_trace,
        tab.opened,
        [tab.live, tab.status],
        show_progress="full",
        show_progress_on=tab.status,
        api_visibility="private",
    )
    # A link restores every setting in the browser. A value that it cannot use stays as it is and is named.
    demo.load(
        None,
        None,
        [tab.prompt, tab.compare, *everything, tab.model, tab.status],
        js=FROM_LINK,
        show_progress="hidden",
    )


def _join_settings(tab: RunTab, rules: list[Any], linked: list[Any]) -> None:
    """Connect the settings in the browser alone: the forecast follows every slider without a request to the server.

    Args:
        linked: the controls, in the order of `linked`.
    """
    gr.on(
        [control.change for control in linked],
        fn=None,
        inputs=linked,
        outputs=tab.preset,
        js="(...settings) => window.LoraDrop.settings(settings)",
    )
    # Once a control was moved, "Show me" becomes "Run": the visitor wants these settings.
    gr.on([control.input for control in linked], fn=None, js="() => window.LoraDrop.moved()")
    # Moving the range or the ratio replaces the exact layers that a preset may have set.
    spread = [tab.controls["layers"].input, tab.controls["drop_ratio"].input]
    gr.on(spread, fn=None, outputs=tab.controls["drop_layers"], js="() => ''")
    # Verifying needs exact full steps, and only with it can repeats be rejected, and the text draft.
    accept, *others = (tab.controls[name] for name in ("accept", "refresh", "kv", "own_repeats", "lookup"))
    verify = (
        "(accept, ...[refresh, kv, ...rest]) => (accept > 0 ? ['repair', 'write', ...rest] : [refresh, kv, false, 0])"
    )
    accept.input(None, [accept, *others], others, js=verify)
    for button, text in tab.examples:
        button.click(None, None, tab.prompt, js=f"() => {json.dumps(text)}")
    tab.preset.input(None, tab.preset, rules, js="(name) => window.LoraDrop.preset(name)")
    tab.prompt.change(None, tab.prompt, None, js="(text) => window.LoraDrop.prompt(text)")
    tab.to_settings.click(None, None, None, js="() => window.LoraDrop.toSettings()")


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
    # A call that never reached `run_page`, or lost its connection: the status line would not change otherwise.
    refused = "The run did not start: the note says why, or the server cannot be reached. Try again in a moment."
    lost = "The connection was lost during the run; its text so far is below. Run it again."
    words = f"window.LoraDrop.failed({json.dumps(refused)}, {json.dumps(lost)})"
    started.failure(None, None, tab.status, js=f"() => {words}", show_progress="hidden")
    # Outside the queue: Stop sets a flag, the run ends after its current step and sends what it has.
    tab.stop.click(calls.stop_page, None, None, queue=False, show_progress="hidden", api_visibility="private")


def _join_model(calls: Callbacks, tab: RunTab, rules: list[Any], chosen: ModelFacts, current: gr.State) -> None:
    """Connect the models menu: a model's facts go to the scripts, then its default preset to the controls.

    The settings of a link take the preset's place.
    """
    tab.model.input(None, None, None, js="() => window.LoraDrop.modelChosen()")
    # Files are fetched outside the queue of runs. A menu that went back to the current model changes nothing.
    fetched = tab.model.change(
        calls.fetch_model,
        [tab.model, current],
        [tab.status, tab.model, tab.stop],
        show_progress="hidden",
        concurrency_id="fetch",
        concurrency_limit=4,
        api_visibility="private",
    )
    fetched.success(
        calls.use_model,
        [tab.model, current],
        [chosen, tab.status, tab.model, current],
        show_progress_on=tab.status,
        **ON_DEVICE,
    )
    chosen.change(None, None, [tab.preset, *rules], js="() => window.LoraDrop.modelSettings()")
