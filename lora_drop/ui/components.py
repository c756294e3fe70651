"""The page's components: small `gr.HTML` subclasses whose behaviour is in `assets/js`, and how that code loads.

Gradio evaluates an `html_template` twice (Handlebars, then a JavaScript template string). So the templates are static
files without `${`, backticks or backslashes, and no value enters a template: the scripts write text with
`textContent`.

The ES modules are served unchanged by `route`, not by Gradio's file route. Modules import each other by relative
paths, which drop the query of the importing module's address: with a `?v=` at the entry alone, a browser could mix old
modules with new ones. An import map would have to be in the page before Gradio's modules load, and Gradio lets nothing
in there. So the version of all modules is a folder in their address. Addresses are relative, to survive a mount path
and a Space's proxy.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import gradio as gr
import orjson
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from lora_drop.errors import LoraDropError
from lora_drop.run.exports.scripts import PLOTLY, SCRIPTS, modules
from lora_drop.run.exports.templates import TEMPLATES

SEE_LOG = "The server's log has the details."
# Options of an event that uses the device: it waits in the queue and shows its progress.
ON_DEVICE: dict[str, Any] = dict(
    show_progress="full", concurrency_id="gpu", concurrency_limit=1, api_visibility="private"
)
ENTRY = "main.js"  # the page's first module; it imports a tab's modules when the tab is first opened


@cache
def address() -> str:
    """Relative address of the modules' folder; it changes with the content of any module."""
    sources = {path.relative_to(SCRIPTS).as_posix(): path.read_text("utf-8") for path in SCRIPTS.rglob("*.js")}
    content = json.dumps(sources, sort_keys=True).encode()
    return f"lora-drop-js/{hashlib.sha256(content).hexdigest()[:12]}"


class _Immutable(StaticFiles):
    """A folder whose files a browser may keep: the content at an address never changes."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def route() -> Mount:
    """The route that serves the modules."""
    return Mount(f"/{address()}", _Immutable(directory=SCRIPTS))


def head() -> str:
    """HTML that preloads the page's modules together; otherwise each would wait for its importing module."""
    return "".join(f'<link rel="modulepreload" href="{address()}/{name}">' for name in modules(ENTRY))


def on_load(call: str) -> str:
    """A component's `js_on_load`: a call of a function that the entry module exports."""
    name = call.partition("(")[0]
    # Gradio makes a function of this text: a relative import in it would start from Gradio's script.
    return f'import(new URL("{address()}/{ENTRY}", document.baseURI)).then(({{ {name} }}) => {call})'


@cache
def plotly_head() -> str:
    """HTML that loads plotly.js, from an address that changes with its content.

    Gradio loads a component's scripts once a page, before its `js_on_load` runs.
    """
    digest = hashlib.sha256(PLOTLY.read_bytes()).hexdigest()[:12]
    return f'<script src="gradio_api/file={PLOTLY.as_posix()}?v={digest}"></script>'


def _template(name: str) -> str:
    html = (TEMPLATES / name).read_text(encoding="utf-8")
    if any(mark in html for mark in ("${", "`", "\\", "{{")):
        raise ValueError(f"{name}: Gradio would evaluate this as a template; keep it static.")
    return html


def server_function(name: str, work: Callable[..., Any], count: int | None = None) -> Callable[[Any], Any]:
    """Wrap a function that the scripts call as `server.NAME(argument)`.

    Gradio sets an attribute on the function, which a method does not allow.

    Args:
        name: the name in the scripts.
        work: takes the argument; with `count`, the values of a list of that length, or as many Nones.
    """

    def call(argument: Any = None) -> Any:
        if count is None:
            return sendable(work(argument))
        is_list = isinstance(argument, list) and len(argument) == count
        return sendable(work(*(argument if is_list else [None] * count)))

    call.__name__ = name
    return call


def sendable(answer: Any) -> Any:
    """The answer with question marks for half surrogates, which a trace or a call may hold and Gradio cannot send."""
    try:
        orjson.dumps(answer)
    except TypeError:
        return json.loads(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    return answer


class Scripted(gr.HTML):
    """Base of the components: a static template, a function that mounts it, and none of Gradio's styles.

    Keyword arguments that `gr.HTML` does not have become the `props` of the scripts.
    """

    TEMPLATE = ""  # a file in assets/html
    MOUNT = ""  # the call that mounts it, of a function that the entry module exports

    # Gradio creates a component again for an update, without a value.
    def __init__(self, value: Any = None, **kwargs: Any):
        super().__init__(
            value=value,
            html_template=_template(self.TEMPLATE),
            js_on_load=on_load(self.MOUNT),
            css_template="",
            apply_default_css=False,
            **kwargs,
        )

    def postprocess(self, value: Any) -> Any:
        """Send the value as it is."""
        return value


class LiveView(Scripted):
    """Text panes, figures and live charts of a run.

    The value is the run's wire text so far (`run.wire.wire_line`), a growing string of lines. Gradio sends only what
    was appended, so nothing is mounted again and a chart keeps its zoom.

    Args:
        model: `model_facts` of the loaded model.
        server_functions: `export_run`, `inspect_step`, `compare_runs`, `align_answers` and `recorded_run`.
    """

    TEMPLATE, MOUNT = "live.html", "mountLive(element, props, watch, server)"

    def __init__(self, value: str = "", **kwargs: Any):
        super().__init__(value, head=plotly_head(), **kwargs)

    def api_info(self) -> dict[str, Any]:
        """JSON Schema of the value."""
        return {"type": "string", "description": "NDJSON, shortened for the page"}


class LayerRange(Scripted):
    """A slider with two handles: the layers that may be skipped, `[lo, hi]`, inclusive, with lo >= 1.

    It triggers `input` when a visitor moves a handle.

    Args:
        last: index of the model's last layer.
        info: what moving a handle changes on the screen.
    """

    TEMPLATE, MOUNT = "range.html", "mountRange(element, props, watch, trigger)"

    def preprocess(self, payload: Any) -> tuple[int, int]:  # type: ignore[override]  # gr.HTML's is a text
        """The two bounds as whole numbers; `LoraDropConfig` checks them against the model."""
        if not isinstance(payload, list) or [type(bound) for bound in payload] != [int, int]:
            raise gr.Error("layers must be a range of two whole numbers.", print_exception=False)
        return payload[0], payload[1]

    def api_info(self) -> dict[str, Any]:
        """JSON Schema of the value."""
        return {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


class WhatIf(Scripted):
    """Forecast for the settings, drawn in the browser without running a model.

    Args:
        model: `model_facts` of the loaded model.
        settings: first values of the controls, by name.
        presets: settings by preset name.
        prompt_tokens: number of tokens of the page's first prompt.
        table: the settings behind the controls, in their order (`Setting.facts`).
        server_functions: `count_tokens`, which the page calls when the visitor stops typing.
    """

    TEMPLATE, MOUNT = "whatif.html", "mountWhatIf(element, props, server)"


class ModelFacts(Scripted):
    """An invisible component that hands `page_facts` of a chosen model to the scripts.

    The value is None for the model that the page was built with. It triggers `change` once a model is shown.

    Args:
        labels: the models that may be chosen.
    """

    TEMPLATE, MOUNT = "facts.html", "mountFacts(element, props, watch)"

    def __init__(self, value: dict[str, Any] | None = None, labels: Sequence[str] = (), **kwargs: Any):
        super().__init__(value, labels=list(labels), **kwargs)


class PresetTable(Scripted):
    """A choice of presets with their measured results; the value is a preset's name, or `custom`.

    It triggers `input` when a visitor chooses.

    Args:
        facts: the result of `preset_facts`.
        server_functions: `calibrated_presets`, which the page asks while the machine is calibrated.
    """

    TEMPLATE, MOUNT = "presets.html", "mountPresets(element, props, watch, trigger, server)"


class Pays(Scripted):
    """Where LoRA-Drop pays, folded: it asks for its content when it is unfolded.

    Args:
        server_functions: `where_it_pays`, with a model's name and the calculator's values.
    """

    TEMPLATE, MOUNT = "pays.html", "mountPays(element, server)"


class Compare(Scripted):
    """The corrections in use, and a choice of third lane: the same schedule with one setting changed.

    The value is the name of a comparison, or an empty text for none.

    Args:
        comparisons: by name, the `button` and the label of the `lane`.
    """

    TEMPLATE, MOUNT = "compare.html", "mountCompare(element, props, watch)"


class Status(Scripted):
    """One line about the run, of a fixed height: a `status_value`."""

    TEMPLATE, MOUNT = "status.html", "mountStatus(element, props, watch)"


def status_value(kind: str, text: str) -> dict[str, str]:
    """Value of `Status`; the kinds are idle, running, done and error."""
    return {"kind": kind, "text": text}


def error_line(error: Exception, failure: str) -> str:
    """One line about an error for the visitor. Unless it is a `LoraDropError`, the operator gets the traceback.

    Args:
        failure: a sentence on what failed, for any other error.
    """
    if isinstance(error, LoraDropError):
        return str(error)
    traceback.print_exception(error)
    return f"{failure} {SEE_LOG}"


class FreeSlider(gr.Slider):
    """A slider that hands on any number: `Request` and `LoraDropConfig` name the limit in one clear line.

    Gradio's check would answer with a pop-up.
    """

    is_template = True  # the page draws it as a plain slider

    def preprocess(self, payload: Any) -> Any:
        """Hand on the value unchecked."""
        return payload


class OpenButton(gr.UploadButton):
    """An upload button that hands on the file's path. Gradio's button also leaves an empty file each time."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """Hand on the path."""
        return str(payload.path) if payload else None


class FreeNumber(gr.Number):
    """A number field that hands on any number, for the same reason as `FreeSlider`."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """Hand on the value unchecked."""
        return payload
