"""The page over a pool of models, and its launch: what `app.py` and the browser tests share."""

from __future__ import annotations

import gradio as gr
from starlette.middleware import Middleware

from lora_drop.method.fields import SCHEDULE
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.colors import css_variables
from lora_drop.run.exports.scripts import RUN_STYLES, TAB_STYLES, plotly_script
from lora_drop.ui import events, scripts
from lora_drop.ui.api import build_api
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.components import ModelFacts
from lora_drop.ui.controls import SHOWN
from lora_drop.ui.facts import page_facts
from lora_drop.ui.method import Method
from lora_drop.ui.run_tab import build_run_tab
from lora_drop.ui.safe_zone.tab import build_safe_zone_tab, join_runs
from lora_drop.ui.serve import connections, gradio_private, owner
from lora_drop.ui.serve.compressed import Compressed
from lora_drop.ui.serve.gradio_queue import use_fair_queue
from lora_drop.ui.serve.guard import Guard
from lora_drop.ui.serve.limits import Limits
from lora_drop.ui.serve.policy import Policy
from lora_drop.ui.serve.uploads import Uploads
from lora_drop.ui.theme import theme

UPLOAD_SECONDS = 3600  # how often opened traces that are left over are looked for, and after how long they are deleted
TITLE = (
    "<h1>LoRA-Drop Studio</h1><p>What does a language model lose, and gain, if it skips layers for most of its "
    "words?</p>"
)


class Page(gradio_private.Blocks):
    """The page, and what its launch needs: its functions, and how it treats those who reach it."""

    calls: Callbacks
    policy: Policy


def build_app(pool: ModelPool, policy: Policy | None = None) -> Page:
    """The page over a pool of models, on its first one; launch it with `launch`.

    Args:
        policy: private, with the limits of the environment, unless given.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    gr.set_static_paths([plotly_script()])
    policy = policy or Policy(limits=Limits.from_environment())
    calls = Callbacks(pool, policy.limits)
    found = page_facts(pool.info(None))
    with Page(title="LoRA-Drop Studio", fill_width=True, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)) as demo:
        demo.calls, demo.policy = calls, policy
        with gr.Row(elem_id="ld-top"):
            gr.HTML(TITLE, elem_id="ld-title", apply_default_css=False)
        with gr.Tabs(elem_id="ld-tabs"):
            with gr.Tab("Run", id="run"):
                tab = build_run_tab(calls, found)
            with gr.Tab("Safe zone", id="safe-zone"):
                zone = build_safe_zone_tab(pool, calls.limits, tab.model)
            with gr.Tab("Method", id="method"):
                Method(elem_id="ld-method")
        chosen, shown = ModelFacts(labels=pool.labels, elem_id="ld-facts"), gr.State(pool.first)
        zone.follow(shown)
        join_runs(zone, [tab.controls[one.name] for one in SHOWN if one.of == SCHEDULE])
        events.join(demo, calls, tab, chosen, shown)
        build_api(calls)
    return demo


def launch(
    demo: Page,
    host: str | None = None,
    port: int | None = None,
    block: bool = True,
    mcp: bool = False,
    share: bool = False,
) -> str:
    """Serve the page; returns its address, or with `block` when the server ends.

    Args:
        host, port: `None` leaves them to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, then to Gradio's own defaults.
        mcp: serve the API's functions as MCP tools too (also by GRADIO_MCP_SERVER).
        share: have Gradio lead an address of the web here.
    """
    calls, policy = demo.calls, demo.policy
    gradio_private.ask_no_other_host()
    gradio_private.keep_no_values()
    gradio_private.drop_broken_uploads()
    connections.guard_connections(policy, calls.counters)
    queue = use_fair_queue(demo, policy, calls.counters, calls.check_early)

    def now() -> dict[str, float]:
        return {"queue": len(queue.waiting()), "load_seconds": calls.pool.load_seconds}

    guards = [
        Middleware(Guard, policy=policy, counters=calls.counters),
        Middleware(Uploads, policy=policy, counters=calls.counters, shelf=calls.uploads),
        Middleware(Compressed),
    ]
    _, url, public_url = demo.launch(
        server_name=host,
        server_port=port,
        share=share,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        enable_monitoring=False if policy.public else None,
        max_file_size=policy.limits.trace_bytes,
        state_session_capacity=queue.sessions,
        mcp_server=mcp or None,
        theme=theme(),
        head=scripts.head(),
        app_kwargs={
            "routes": [scripts.route(), *owner.routes(policy, calls.counters, now)],
            "middleware": guards,
            "exception_handlers": gradio_private.answers_to_mistakes(),
        },
        css=css_variables(),
        css_paths=[*RUN_STYLES, *TAB_STYLES],
        footer_links=["api", "settings"],
        run_history=False,
    )
    if block:
        mode = "public" if policy.public else "private"
        print(f"LoRA-Drop Studio is ready ({mode}): {public_url or url}", flush=True)
        demo.block_thread()
    return url
