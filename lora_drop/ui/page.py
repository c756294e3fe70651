"""The page, built over one loaded model, and its launch: what `app.py` and the browser tests share."""

from __future__ import annotations

import json
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
# Gradio makes a table of its last 10,000 calls after each of them, in a thread beside the decoding: 15 ms.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "200")

import gradio as gr  # noqa: E402

from lora_drop.evaluation.prompts import EXAMPLES  # noqa: E402
from lora_drop.method.config import KV_RULES, PARTS, REUSE_RULES, default_range  # noqa: E402
from lora_drop.method.presets import COMPARISONS, presets_for  # noqa: E402
from lora_drop.models.pool import ModelPool  # noqa: E402
from lora_drop.paths import ASSETS
from lora_drop.run.exports.colors import css_variables  # noqa: E402
from lora_drop.run.exports.scripts import plotly_script
from lora_drop.run.race import VIEWS  # noqa: E402
from lora_drop.run.trace import MAX_TRACE_BYTES  # noqa: E402
from lora_drop.ui import method, outgoing, safe_zone, sessions  # noqa: E402
from lora_drop.ui import space as zero
from lora_drop.ui.components import (
    Compare,
    FreeNumber,
    FreeSlider,
    LayerRange,
    LiveView,
    ModelFacts,
    PresetTable,
    Status,
    WhatIf,
)
from lora_drop.ui.events import Callbacks, page_facts, settings_of  # noqa: E402
from lora_drop.ui.limits import Limits  # noqa: E402
from lora_drop.ui.theme import theme  # noqa: E402

FIRST_PROMPT = next(iter(EXAMPLES.values()))
# The page's load event comes before its components are mounted: wait for the last of them.
FROM_LINK = """async () => {
    while (!window.LoraDrop?.fromLink || !document.querySelector(".ld-whatif[data-state]"))
        await new Promise((done) => setTimeout(done, 50));
    return window.LoraDrop.fromLink();
}"""
INVITE = "Ready. Press Run to answer the prompt twice, side by side."
MAX_TOKENS = 128
UPLOAD_SECONDS = 3600  # how often opened traces are looked for, and after how long they are deleted

REUSE_LABELS = {
    "state": "state: last token's output (paper)",
    "anchor": "anchor: last refresh's output",
    "residual": "residual: what the last refresh added",
    "skip": "skip: nothing, the layer is left out",
}
PART_LABELS = {"block": "layer (paper)", "attention": "attention only"}
KV_LABELS = {"skip": "none (paper)", "write": "still written"}
VIEW_LABELS = {"race": "Race: each at its own pace", "lock-step": "Lock-step: step by step"}


def _choices(values: tuple[str, ...], labels: dict[str, str]) -> list[tuple[str, str]]:
    return [(labels.get(value, value), value) for value in values]


def build_app(pool: ModelPool) -> gr.Blocks:
    """The page over a pool of models, on its first one; launch it with `launch`.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    gr.set_static_paths([plotly_script(), *(path for path in ASSETS.glob("*.js"))])
    calls, info = Callbacks(pool), pool.info(None)
    found = page_facts(info)
    facts, presets = found["model"], found["presets"]
    first = presets_for(info.id)[presets["default"]].config
    low, high = first.layers or default_range(info.num_layers)
    tokens_at_first = min(MAX_TOKENS, calls.limits.tokens)
    settings = settings_of(first, info.num_layers)

    with gr.Blocks(title="LoRA-Drop Studio", fill_width=True, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)) as demo:
        with gr.Row(elem_id="ld-top"):
            gr.HTML(
                "<h1>LoRA-Drop Studio</h1><p>One prompt, answered twice: with every layer for every word, and with "
                "layers left out between full steps.</p>",
                elem_id="ld-title",
                apply_default_css=False,
            )
        with gr.Tabs(elem_id="ld-tabs"):
            with gr.Tab("Run", id="run"):
                with gr.Row(elem_id="ld-page", equal_height=False):
                    with gr.Column(elem_id="ld-left"):
                        with gr.Column(elem_id="ld-ask"):
                            prompt = gr.Textbox(
                                FIRST_PROMPT, label="Prompt", lines=2, max_lines=6, elem_id="ld-prompt"
                            )
                            with gr.Row(elem_id="ld-examples"):
                                examples = [
                                    (gr.Button(name, size="sm", min_width=0), text) for name, text in EXAMPLES.items()
                                ]
                            with gr.Row(elem_id="ld-buttons"):
                                run = gr.Button("Run", variant="primary", elem_id="ld-run")
                                stop = gr.Button("Stop", interactive=False, elem_id="ld-stop")
                                opened = gr.UploadButton("Open trace", file_types=[".jsonl"], elem_id="ld-open")
                            status = Status(INVITE, elem_id="ld-status")
                            if notice := zero.notice():
                                gr.HTML(notice, apply_default_css=False, elem_id="ld-zero")
                        with gr.Column(elem_id="ld-settings"):
                            if len(pool.labels) > 1:
                                model = gr.Dropdown(
                                    list(pool.labels), value=pool.first, label="Model", elem_id="ld-model"
                                )
                            preset = PresetTable(presets, elem_id="ld-preset")
                            period = FreeSlider(
                                1,
                                16,
                                first.period,
                                step=1,
                                label="Period: one full step in every …",
                                buttons=[],
                                elem_id="ld-period",
                            )
                            layers = LayerRange((low, high), info.num_layers, elem_id="ld-layers")
                            ratio = FreeSlider(
                                0,
                                1,
                                first.drop_ratio,
                                step=0.05,
                                label="Drop ratio: share of that range",
                                buttons=[],
                                elem_id="ld-ratio",
                            )
                            reuse = gr.Dropdown(
                                _choices(REUSE_RULES, REUSE_LABELS),
                                value=first.reuse,
                                label="Reuse rule",
                                elem_id="ld-reuse",
                            )
                            with gr.Row():
                                part = gr.Dropdown(
                                    _choices(PARTS, PART_LABELS),
                                    value=first.part,
                                    label="What is dropped",
                                    elem_id="ld-part",
                                )
                                kv = gr.Dropdown(
                                    _choices(KV_RULES, KV_LABELS),
                                    value=first.kv,
                                    label="K/V when dropped",
                                    elem_id="ld-kv",
                                )
                            with gr.Accordion("Advanced", open=False, elem_id="ld-advanced"):
                                listed = gr.Textbox(
                                    settings["drop_layers"],
                                    label="Exact layers to drop (instead of range and ratio)",
                                    placeholder="e.g. 4,6,8",
                                    elem_id="ld-listed",
                                )
                                with gr.Row():
                                    # Texts, as Gradio turns an empty number field into 0, which is a threshold.
                                    entropy = gr.Textbox(
                                        settings["refresh_entropy"],
                                        label="Refresh early at entropy",
                                        info="of the last token, in nats",
                                        placeholder="off",
                                        elem_id="ld-refresh-entropy",
                                    )
                                    norm = gr.Textbox(
                                        settings["refresh_norm"],
                                        label="… at correction",
                                        info="share of what it corrects",
                                        placeholder="off",
                                        elem_id="ld-refresh-norm",
                                    )
                                adapters = gr.Radio(
                                    [("auto", "auto"), ("none", "none")],
                                    value=first.adapters,
                                    label="Trained corrections (adapters)",
                                    info="auto: those named beside the what-if strip, where there are some",
                                    elem_id="ld-adapters",
                                )
                                tokens = FreeNumber(
                                    tokens_at_first, label="New tokens, at most", precision=0, elem_id="ld-tokens"
                                )
                                with gr.Row():
                                    temperature = FreeNumber(
                                        0, label="Temperature", info="0 is greedy", elem_id="ld-temp"
                                    )
                                    top_p = FreeNumber(1, label="Top-p", info="1 is off", elem_id="ld-top-p")
                                    seed = FreeNumber(
                                        0, label="Seed", info="both lanes", precision=0, elem_id="ld-seed"
                                    )
                                view = gr.Radio(
                                    _choices(VIEWS, VIEW_LABELS), value="race", label="View", elem_id="ld-view"
                                )
                                audit = gr.Checkbox(
                                    True,
                                    label="Audit: true drift, KL, agreement (outside both clocks)",
                                    elem_id="ld-audit",
                                )
                                ignore_eos = gr.Checkbox(
                                    False, label="Go on after the model ends its text", elem_id="ld-ignore-eos"
                                )
                                if len(pool.labels) == 1:
                                    model = gr.Textbox(
                                        pool.first, label="Model", interactive=False, elem_id="ld-model"
                                    )
                    with gr.Column(elem_id="ld-right"):
                        with gr.Row(elem_id="ld-strip"):
                            WhatIf(
                                facts,
                                {**settings, "max_new_tokens": tokens_at_first},
                                found["settings"],
                                calls.count_tokens(FIRST_PROMPT) or 0,
                                calls.count_tokens,
                                elem_id="ld-whatif",
                            )
                            compare = Compare(
                                {name: {"button": c.button, "lane": c.lane} for name, c in COMPARISONS.items()},
                                elem_id="ld-compare",
                            )
                        live = LiveView(facts, calls.export_run, elem_id="ld-live")
            with gr.Tab("Safe zone", id="safe-zone"):
                follow = safe_zone.build(pool, calls.limits, model)
            with gr.Tab("Method", id="method"):
                method.build(facts)
        chosen, shown = ModelFacts(labels=pool.labels, elem_id="ld-facts"), gr.State(pool.first)
        follow(shown)

        rules = [period, layers, ratio, listed, reuse, part, kv, entropy, norm, adapters]
        # These run in the browser alone: the what-if strip follows every slider with no request to the server.
        gr.on(
            [control.change for control in [*rules, tokens]],
            fn=None,
            inputs=[*rules, tokens],
            outputs=preset,
            js="(...settings) => window.LoraDrop.settings(settings)",
        )
        # A visitor who moves the range or the ratio means them, not the exact layers that a preset may have set.
        gr.on([layers.input, ratio.input], fn=None, outputs=listed, js="() => ''")
        for button, text in examples:
            button.click(None, None, prompt, js=f"() => {json.dumps(text)}")
        preset.input(None, preset, rules, js="(name) => window.LoraDrop.preset(name)")
        prompt.change(None, prompt, None, js="(text) => window.LoraDrop.prompt(text)")

        asked = [tokens, temperature, top_p, seed, view, audit, ignore_eos]
        started = gr.on(
            [run.click, prompt.submit],
            calls.run_page,
            [compare, prompt, *rules, *asked, model],
            [live, status, stop],
            show_progress="full",
            show_progress_on=status,
            concurrency_id="gpu",
            concurrency_limit=1,
            api_visibility="private",
        )
        # What never reached `run_page`: without this, the line would go on saying that all is ready.
        refused = (
            f"The run did not start: this app's queue is full (it holds {calls.limits.queue}), or the server cannot "
            "be reached. Try again in a moment."
        )
        words = json.dumps({"kind": "error", "text": refused})
        started.failure(None, None, status, js=f"() => ({words})", show_progress="hidden")
        # Another model: its facts go to what the scripts draw, and then its preset's settings to the controls. A link
        # brings settings of its own.
        model.input(None, None, None, js="() => window.LoraDrop.modelChosen()")
        model.change(
            calls.use_model,
            [model, shown],
            [chosen, status, model, shown],
            show_progress="full",
            show_progress_on=status,
            concurrency_id="gpu",
            concurrency_limit=1,
            api_visibility="private",
        )
        chosen.change(None, None, [preset, *rules], js="() => window.LoraDrop.modelSettings()")
        opened.upload(
            calls.open_trace,
            opened,
            [live, status],
            show_progress="full",
            show_progress_on=status,
            api_visibility="private",
        )
        # A link restores every setting, in the browser; what it names wrongly is left alone and told.
        demo.load(
            None,
            None,
            [prompt, compare, *rules, *asked, model, status],
            js=FROM_LINK,
            show_progress="hidden",
        )
        # Not in the queue of runs: the soft flag ends the run after its step, and the run delivers what it has.
        stop.click(calls.stop_page, None, None, queue=False, show_progress="hidden", api_visibility="private")

        gr.api(calls.generate, api_name="generate", concurrency_id="gpu", concurrency_limit=1)
        gr.api(calls.estimate, api_name="estimate", queue=False)
        gr.api(calls.replay, api_name="replay")
    return demo


def launch(
    demo: gr.Blocks, host: str | None = None, port: int | None = None, block: bool = True, mcp: bool = False
) -> str:
    """Serve the page; returns its address, or with `block` when the server ends.

    Args:
        host, port: `None` leaves them to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, then to Gradio's own defaults.
        mcp: serve the API's functions as MCP tools too (also by GRADIO_MCP_SERVER).
    """
    outgoing.refuse()
    demo.queue(max_size=Limits.from_environment().queue)
    _, url, _ = demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        max_file_size=MAX_TRACE_BYTES,
        state_session_capacity=sessions.keep_few(demo),
        mcp_server=mcp or None,
        theme=theme(),
        css=css_variables(),
        css_paths=[ASSETS / "live.css", ASSETS / "tabs.css"],
        footer_links=["api", "settings"],
        run_history=False,
    )
    if block:
        print(f"LoRA-Drop Studio is ready: {url}", flush=True)
        demo.block_thread()
    return url
