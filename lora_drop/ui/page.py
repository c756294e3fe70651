"""Build the page over a pool of models, and launch it."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from lora_drop.method.fields import SCHEDULE
from lora_drop.models.named import NAMED, checked_file
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.colors import css_variables
from lora_drop.run.exports.scripts import PLOTLY, RUN_STYLES, TAB_STYLES
from lora_drop.ui import components
from lora_drop.ui.api import build_api
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.controls import SHOWN
from lora_drop.ui.facts import page_facts
from lora_drop.ui.method import Method
from lora_drop.ui.run_tab import build_run_tab, join
from lora_drop.ui.safe_zone.tab import build_safe_zone_tab, join_runs
from lora_drop.ui.serve import connections, gradio_private, owner
from lora_drop.ui.serve.gradio_queue import FairQueue, use_fair_queue
from lora_drop.ui.serve.guard import Guard
from lora_drop.ui.serve.policy import ENDING, Limits, Policy
from lora_drop.ui.serve.routes import Routes
from lora_drop.ui.serve.uploads import Uploads
from lora_drop.ui.theme import theme

RUN_SECONDS, CLOSE_SECONDS = 3.0, 0.5  # at the end, until runs have stopped and until connections are closed
TITLE = (
    "<h1>LoRA-Drop Studio</h1><p>What does a language model lose, and gain, if it skips layers for most of its "
    "words?</p>"
)


class Page(gradio_private.Blocks):
    """The page with its functions and its policy, which the launch needs."""

    calls: Callbacks
    policy: Policy


def build_app(pool: ModelPool, policy: Policy | None = None) -> Page:
    """Build the page over a pool of models, showing its first one; `launch` serves it.

    Args:
        policy: by default private, with the limits of the environment.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    gr.set_static_paths([PLOTLY])
    policy = policy or Policy(limits=Limits.from_environment())
    calls = Callbacks(pool, policy.limits, policy.public)
    facts = page_facts(pool.info(None))
    demo = Page(title="LoRA-Drop Studio", fill_width=True)
    with demo:
        demo.calls, demo.policy = calls, policy
        with gr.Row(elem_id="ld-top"):
            gr.HTML(TITLE, elem_id="ld-title", apply_default_css=False)
        with gr.Tabs(elem_id="ld-tabs"):
            with gr.Tab("Run", id="run"):
                tab = build_run_tab(calls, facts)
            with gr.Tab("Safe zone", id="safe-zone"):
                zone = build_safe_zone_tab(pool, calls.limits, tab.model)
            with gr.Tab("Method", id="method"):
                Method(pays=calls.where_it_pays, elem_id="ld-method")
        chosen = components.ModelFacts(labels=pool.labels, elem_id="ld-facts")
        current = gr.State(pool.first)
        zone.follow(current)
        join_runs(zone, [tab.controls[setting.name] for setting in SHOWN if setting.of == SCHEDULE])
        join(demo, calls, tab, chosen, current)
        build_api(calls)
    return demo


def launch(
    demo: Page,
    host: str | None = None,
    port: int | None = None,
    block: bool = True,
    mcp: bool = False,
    share: bool = False,
    inline: bool = False,
) -> str:
    """Serve the page and return its address; with `block`, return when the server ends.

    Args:
        host: None leaves it to GRADIO_SERVER_NAME, then to Gradio's default.
        port: None leaves it to GRADIO_SERVER_PORT, then to Gradio's default.
        mcp: also serve the API's functions as MCP tools (GRADIO_MCP_SERVER sets it too).
        share: also serve the page at a public Gradio address.
        inline: show the page in the cell of the notebook that calls this.
    """
    calls, policy = demo.calls, demo.policy
    gradio_private.refuse_untested(policy.public)
    gradio_private.ask_no_other_host()
    gradio_private.clean_prints()
    gradio_private.keep_no_values()
    gradio_private.answer_tools_in_json()
    gradio_private.drop_broken_uploads()
    connections.guard_connections(policy, calls.counters)
    queue = use_fair_queue(demo, policy, calls.counters, calls.check_early, calls.visits)

    def now() -> dict[str, float]:
        return {"queue": len(queue.waiting()), "load_seconds": calls.pool.load_seconds}

    guards = [
        Middleware(Guard, policy=policy, counters=calls.counters, visits=calls.visits),
        # Gradio compresses the files that it knows as text, but not the document. Streams of events stay as they are.
        Middleware(GZipMiddleware),
        Middleware(Uploads, policy=policy, counters=calls.counters, shelf=calls.uploads, visits=calls.visits),
    ]
    _, url, public_url = demo.launch(
        server_name=host,
        server_port=port,
        share=share,
        inline=inline,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        enable_monitoring=False if policy.public else None,
        max_file_size=policy.limits.trace_bytes,
        state_session_capacity=queue.sessions,
        mcp_server=mcp or None,
        theme=theme(),
        head=components.head(),
        app_kwargs={
            "routes": [components.route(), *owner.routes(policy.token, calls.counters, now)],
            "middleware": guards,
            "exception_handlers": gradio_private.answers_to_mistakes(),
        },
        css=css_variables(),
        css_paths=[*RUN_STYLES, *TAB_STYLES],
        footer_links=["api", "settings"],
        run_history=False,
    )
    gradio_private.share_states(demo, calls.visits)
    calls.uploads.on_drop = partial(gradio_private.forget_file, demo)
    calls.uploads.by_address = policy.tells_apart
    calls.visits.watch(lambda: demo.is_running)
    if closed := Routes(demo.app.routes).unknown:
        print(f"note: closed, because this app does not know them: {', '.join(closed)}", file=sys.stderr)
    if block:
        mode = "public" if policy.public else "private"
        print(f"LoRA-Drop Studio is ready ({mode}): {public_url or url}", flush=True)
        for model in NAMED.values():
            if model.name in calls.pool.labels and not checked_file(model):
                get = f"`lora-drop fetch {model.name}` ({model.size_words}), or the page's Model menu"
                print(f"A larger model, {model.label}: {get}", flush=True)
        _serve_until_ended(demo, queue)
    return url


def _serve_until_ended(demo: Page, queue: FairQueue) -> None:
    """Return once the server ends. At Ctrl-C or SIGTERM, runs end at their next step, and the process within 5 s."""
    try:
        while demo.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("LoRA-Drop Studio ends: runs stop at their next step.", flush=True)
        ENDING.set()
        end = time.monotonic() + RUN_SECONDS
        while queue.is_busy and time.monotonic() < end:
            time.sleep(0.05)
        closing = threading.Thread(target=demo.close, args=(False,), daemon=True)  # it waits for open streams
        closing.start()
        closing.join(CLOSE_SECONDS)
    demo.calls.uploads.clear()
