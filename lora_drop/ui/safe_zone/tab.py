"""Layout of the Safe zone tab: the view of a sweep, the form that runs one, and their events."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import PARTS, REUSE_RULES
from lora_drop.models.pool import ModelPool
from lora_drop.paths import SHIPPED_METHODS
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.figures.methods import frontier_picture
from lora_drop.run.results.compared import accepted_words, repeats_words, winner_words
from lora_drop.run.results.files import COMPARE
from lora_drop.run.results.rows import QUALITIES
from lora_drop.ui.components import ON_DEVICE
from lora_drop.ui.safe_zone.callbacks import MAX_POINTS, MEASURED_HERE, SafeZone, stored_sweep
from lora_drop.ui.safe_zone.views import Dial, Figure, Progress, SafeMap, progress_value
from lora_drop.ui.serve.policy import Limits
from lora_drop.ui.serve.runs import Stops


@dataclass
class SafeZoneTab:
    """The parts of the tab that the page connects.

    Args:
        map: triggers `input` when a visitor wants to run a setting.
        dial: the same.
        follow: connects the tab to the state that holds the name of the current model.
    """

    map: SafeMap
    dial: Dial
    follow: Callable[[gr.State], None]


def build_safe_zone_tab(pool: ModelPool, limits: Limits, model: gr.components.Component) -> SafeZoneTab:
    """Build the tab inside the open `gr.Tab`; its content comes when the tab is first opened.

    Args:
        model: the models menu.
    """
    stored, missing = stored_sweep()
    zone = SafeZone(pool, stored, Stops(), missing, limits)
    here, opened, unfolded = gr.State(None), gr.State(False), gr.State(False)
    with gr.Row(elem_id="ld-zone", equal_height=False):
        note, choice = _build_shown()
        with gr.Column(elem_id="ld-zone-right"):
            map_ = SafeMap(None, elem_id="ld-zone-map")
            dial = Dial(None, elem_id="ld-zone-dial")
            with gr.Accordion("Speed against quality, all rules, with the paper's own points", open=False) as curves:
                quality = _build_quality()
                front = Figure("One moment …", elem_id="ld-zone-pareto")
            _text(methods_words())
        form, start, cancel, progress = _build_form()

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    # The curves are large, so they come when they are unfolded.
    curves.expand(lambda *chosen: (zone.show(*chosen)[1], True), [choice, quality, here], [front, unfolded], **quiet)
    gr.on(
        [choice.input, quality.input],
        zone.show,
        [choice, quality, here, unfolded],
        [map_, front],
        trigger_mode="always_last",  # a choice counts while the last one is still being drawn
        **quiet,
    )
    start.click(
        zone.run_sweep,
        [*form, quality, here, model],
        [progress, map_, front, choice, here, start, cancel, quality],
        show_progress_on=progress,
        **ON_DEVICE,
    )
    # Outside the queue: Cancel sets a flag, the sweep ends after its current point and keeps the others.
    cancel.click(zone.cancel_page, None, None, queue=False, show_progress="hidden", api_visibility="private")

    def follow(current: gr.State) -> None:
        views = [note, choice, map_, front, dial]
        map_.opened(zone.open, [current, quality, here, unfolded], [*views, opened], **quiet)
        current.change(zone.follow, [opened, current, quality, here, unfolded], views, **quiet)

    return SafeZoneTab(map_, dial, follow)


def join_runs(tab: SafeZoneTab, rules: list[gr.components.Component]) -> None:
    """Have a chosen cell or stop set the controls and press Run, in the browser, as a visitor would.

    Args:
        rules: the controls of the schedule's settings, in the table's order.
    """
    for chosen in (tab.map, tab.dial):
        set_ = chosen.input(None, chosen, rules, js="(value) => window.LoraDrop.chosen(value)", show_progress="hidden")
        set_.then(None, chosen, None, js="(value) => window.LoraDrop.pressRun(value)", show_progress="hidden")


def _build_shown() -> tuple[gr.HTML, gr.Dropdown]:
    """Build the introduction, a note on the stored sweep, and the choice of a way of skipping."""
    with gr.Column(elem_id="ld-zone-show", elem_classes="ld-panel"):
        _text(
            "<h2>Where is LoRA-Drop safe?</h2><p>Skipping more layers, and for longer, saves bytes and costs "
            "quality. Each cell of the map is one setting, measured. A setting is safe if its texts read well on "
            "average; a single answer may read better or worse.</p>"
        )
        note = _text("<p class='ld-zone-known'>One moment …</p>")
        choice = gr.Dropdown([], label="Way of skipping", elem_id="ld-zone-choice")
    return note, choice


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
    """Build the form of a sweep: its fields in the order of `SafeZone.run_sweep`, both buttons and the progress."""
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
        words = f"Every ratio with every period, at most {MAX_POINTS} points."
        progress = Progress(progress_value("idle", words), elem_id="ld-sweep-progress")
        _text(MEASURED_HERE)
    return [ratios, periods, reuse, part, adapters], start, cancel, progress


def methods_words(folder: Path = SHIPPED_METHODS) -> str:
    """The stored frontier of methods as HTML: who wins, and the picture in the page's colours. Empty without one."""
    try:
        content = COMPARE.read(folder / COMPARE.name)
    except LoraDropError:
        return ""
    picture = frontier_picture(content)
    for name, color in COLORS["light"].items():  # so that it follows the page's theme
        picture = picture.replace(color, f"var(--ld-{name})")
    words = f"<h2>Other methods on the same clock</h2><p>{html.escape(winner_words(content))}</p>"
    words += "".join(f"<p>{html.escape(words_of(content))}</p>" for words_of in (accepted_words, repeats_words))
    return f'<div class="ld-panel" id="ld-zone-methods">{words}{picture}</div>'


def _text(words: str) -> gr.HTML:
    """Static HTML."""
    return gr.HTML(words, apply_default_css=False)
