"""The Safe zone tab: what is shown of a sweep, the form that runs one, and their events."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from lora_drop.method.settings import PARTS, REUSE_RULES
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.figures import QUALITIES
from lora_drop.ui.kept import Stops
from lora_drop.ui.limits import Limits
from lora_drop.ui.safe_zone import MAX_POINTS, SafeZone, choices_of, measured_here, stored_sweep
from lora_drop.ui.safe_zone_figures import Figure, Progress


def build_safe_zone_tab(pool: ModelPool, limits: Limits, model: gr.components.Component) -> Callable[[gr.State], None]:
    """The tab's content, inside the layout's open `gr.Tab`.

    Args:
        model: the control that holds the chosen model.

    Returns:
        What wires the tab to a state that holds the model which the page shows.
    """
    stored, missing = stored_sweep()
    zone = SafeZone(pool, stored, Stops(), missing, limits)
    revision = pool.info(None).revision
    choices = choices_of(zone.stored_for(revision)[0], None)
    first = choices[0][1] if choices else None
    heatmaps, curve = zone.show(first, next(iter(QUALITIES)), None)
    here = gr.State(None)
    with gr.Row(elem_id="ld-zone", equal_height=False):
        with gr.Column(elem_id="ld-zone-left"):
            known, choice, quality = _build_shown(zone.known(revision), choices, first)
            form, start, cancel, progress, note = _build_form(revision)
        with gr.Column(elem_id="ld-zone-right"):
            maps = Figure(heatmaps, elem_id="ld-zone-heatmaps")
            front = Figure(curve, elem_id="ld-zone-pareto")

    gr.on(
        [choice.input, quality.input],
        zone.show,
        [choice, quality, here],
        [maps, front],
        trigger_mode="always_last",  # a choice made while the last one is drawn counts
        show_progress="hidden",
        api_visibility="private",
    )
    start.click(
        zone.run_page,
        [*form, quality, here, model],
        [progress, maps, front, choice, here, start, cancel, quality],
        show_progress="full",
        show_progress_on=progress,
        concurrency_id="gpu",
        concurrency_limit=1,
        api_visibility="private",
    )
    # Not in the queue of runs: the soft flag ends the sweep after its point, and what it has stays.
    cancel.click(zone.cancel_page, None, None, queue=False, show_progress="hidden", api_visibility="private")

    def follow(shown: gr.State) -> None:
        shown.change(
            zone.use_model,
            [shown, quality, here],
            [known, note, choice, maps, front],
            show_progress="hidden",
            api_visibility="private",
        )

    return follow


def _build_shown(
    words: str, choices: list[tuple[str, str]], first: str | None
) -> tuple[gr.HTML, gr.Dropdown, gr.Radio]:
    """What of a sweep is shown: words on what is stored, the choice of a rule, the choice of a quality."""
    with gr.Column(elem_id="ld-zone-show", elem_classes="ld-panel"):
        _text(
            "<h2>Where is LoRA-Drop safe?</h2><p>Skipping more layers, and for longer, saves bytes and costs "
            "quality. Each cell is one setting, measured: quality against the full model on the same text, "
            "speed beside the most that its bytes allow, and KV memory. The dashed corner is what the paper "
            "calls safe, for larger models with trained corrections.</p>"
        )
        known = _text(words)
        choice = gr.Dropdown(
            choices,
            value=first,
            label="Rule, part and adapters",
            elem_id="ld-zone-choice",
        )
        quality = gr.Radio(
            [("same next token", "agreement"), ("quality loss (nats per token)", "nll_gap")],
            value="agreement",
            label="Quality in the lower plot",
            elem_id="ld-zone-quality",
        )
    return known, choice, quality


def _build_form(revision: str) -> tuple[list[gr.components.Component], gr.Button, gr.Button, Progress, gr.HTML]:
    """The form of a sweep, in the order of `SafeZone.run_page`; its buttons, its progress and what it measures on."""
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
        note = _text(measured_here(revision))
    return [ratios, periods, reuse, part, adapters], start, cancel, progress, note


def _text(words: str) -> gr.HTML:
    """Static words; they are HTML of the app's own."""
    return gr.HTML(words, apply_default_css=False)
