"""The Safe zone tab: what is shown of a sweep, the form that runs one, and their events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_drop.method.schedule import PARTS, REUSE_RULES
from lora_drop.models.pool import ModelPool
from lora_drop.run.results.rows import QUALITIES
from lora_drop.ui.safe_zone.callbacks import MAX_POINTS, MEASURED_HERE, SafeZone, stored_sweep
from lora_drop.ui.safe_zone.figures import Figure, Progress
from lora_drop.ui.safe_zone.map import Dial, SafeMap
from lora_drop.ui.serve.kept import Stops
from lora_drop.ui.serve.limits import Limits


@dataclass
class SafeZoneTab:
    """The parts of the tab that the page joins.

    Args:
        map, dial: their `input` says that a visitor wants a setting to be run.
        follow: wires the tab to a state that holds the model which the page shows.
    """

    map: SafeMap
    dial: Dial
    follow: Callable[[gr.State], None]


def build_safe_zone_tab(pool: ModelPool, limits: Limits, model: gr.components.Component) -> SafeZoneTab:
    """The tab's content, inside the layout's open `gr.Tab`; what it shows comes when the tab is first opened.

    Args:
        model: the control that holds the chosen model.
    """
    stored, missing = stored_sweep()
    zone = SafeZone(pool, stored, Stops(), missing, limits)
    here, opened, unfolded = gr.State(None), gr.State(False), gr.State(False)
    with gr.Row(elem_id="ld-zone", equal_height=False):
        known, choice = _build_shown()
        with gr.Column(elem_id="ld-zone-right"):
            map_ = SafeMap(None, elem_id="ld-zone-map")
            dial = Dial(None, elem_id="ld-zone-dial")
            with gr.Accordion("Speed against quality, all rules, with the paper's own points", open=False) as curves:
                quality = _build_quality()
                front = Figure("One moment …", elem_id="ld-zone-pareto")
        form, start, cancel, progress = _build_form()

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    # The curves are large, so they come when they are asked for.
    curves.expand(lambda *chosen: (zone.show(*chosen)[1], True), [choice, quality, here], [front, unfolded], **quiet)
    gr.on(
        [choice.input, quality.input],
        zone.show,
        [choice, quality, here, unfolded],
        [map_, front],
        trigger_mode="always_last",  # a choice made while the last one is drawn counts
        **quiet,
    )
    start.click(
        zone.run_sweep,
        [*form, quality, here, model],
        [progress, map_, front, choice, here, start, cancel, quality],
        show_progress="full",
        show_progress_on=progress,
        concurrency_id="gpu",
        concurrency_limit=1,
        api_visibility="private",
    )
    # Not in the queue of runs: the soft flag ends the sweep after its point, and what it has stays.
    cancel.click(zone.cancel_page, None, None, queue=False, show_progress="hidden", api_visibility="private")

    def follow(shown: gr.State) -> None:
        found = [known, choice, map_, front, dial]
        map_.opened(zone.open, [shown, quality, here, unfolded], [*found, opened], **quiet)
        shown.change(zone.follow, [opened, shown, quality, here, unfolded], found, **quiet)

    return SafeZoneTab(map_, dial, follow)


def join_runs(tab: SafeZoneTab, rules: list[gr.components.Component]) -> None:
    """A chosen cell, or a stop of the dial, sets the sliders and presses Run: in the browser, as a visitor would.

    Args:
        rules: the controls of a schedule's settings, in the table's order.
    """
    for chosen in (tab.map, tab.dial):
        set_ = chosen.input(None, chosen, rules, js="(value) => window.LoraDrop.chosen(value)", show_progress="hidden")
        set_.then(None, chosen, None, js="(value) => window.LoraDrop.pressRun(value)", show_progress="hidden")


def _build_shown() -> tuple[gr.HTML, gr.Dropdown]:
    """What of a sweep is shown: words on what is stored, the choice of a way of skipping."""
    with gr.Column(elem_id="ld-zone-show", elem_classes="ld-panel"):
        _text(
            "<h2>Where is LoRA-Drop safe?</h2><p>Skipping more layers, and for longer, saves bytes and costs "
            "quality. Each cell of the map is one setting, measured. Safe is what reads well: a small quality loss on "
            "the full model's own answers, and a text of its own that does not go in circles.</p>"
        )
        known = _text("<p class='ld-zone-known'>One moment …</p>")
        choice = gr.Dropdown([], label="Way of skipping", elem_id="ld-zone-choice")
    return known, choice


def _build_quality() -> gr.Radio:
    words = {
        "own": "loss on own answers",
        "agreement": "same next token, given text",
        "nll_gap": "NLL gap, given text",
    }
    return gr.Radio(
        [(words[name], name) for name in QUALITIES],
        value=next(iter(QUALITIES)),
        label="Quality",
        elem_id="ld-zone-quality",
    )


def _build_form() -> tuple[list[gr.components.Component], gr.Button, gr.Button, Progress]:
    """The form of a sweep, in the order of `SafeZone.run_sweep`; its buttons, its progress and what it measures on."""
    with gr.Column(elem_id="ld-zone-run", elem_classes="ld-panel"):
        _text("<h2>Run a sweep here</h2>")
        with gr.Row():
            ratios = gr.Textbox("0.25,0.5", label="Drop ratios", max_lines=1, elem_id="ld-sweep-ratios")
            periods = gr.Textbox("2,4", label="Periods", max_lines=1, elem_id="ld-sweep-periods")
        with gr.Row():
            reuse = gr.Dropdown(list(REUSE_RULES), value="residual", label="Rule", elem_id="ld-sweep-reuse")
            part = gr.Dropdown(
                [("whole layer" if value == "block" else "attention only", value) for value in PARTS],
                value="block",
                label="What is skipped",
                elem_id="ld-sweep-part",
            )
        adapters = gr.Radio(
            ["auto", "none"], value="auto", label="Trained corrections (adapters)", elem_id="ld-sweep-adapters"
        )
        with gr.Row(elem_id="ld-sweep-buttons"):
            start = gr.Button("Run sweep", variant="primary", elem_id="ld-sweep-run")
            cancel = gr.Button("Cancel", interactive=False, elem_id="ld-sweep-cancel")
        progress = Progress(
            f"Every ratio with every period, at most {MAX_POINTS} points.", elem_id="ld-sweep-progress"
        )
        _text(MEASURED_HERE)
    return [ratios, periods, reuse, part, adapters], start, cancel, progress


def _text(words: str) -> gr.HTML:
    """Static words; they are HTML of the app's own."""
    return gr.HTML(words, apply_default_css=False)
