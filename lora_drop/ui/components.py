"""The page's own components: small `gr.HTML` subclasses whose behaviour lives in `assets/js`.

Gradio evaluates an `html_template` twice (Handlebars, then a JavaScript template string), so the templates are static
files without `${`, backticks or backslashes, and no value ever enters one: the scripts write text with `textContent`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from lora_drop.run.exports.scripts import TEMPLATES, plotly_script
from lora_drop.ui import scripts


@cache
def _address(path: Path) -> str:
    """A relative address (it survives a mount path and a proxy) that changes with the file's content."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return f"gradio_api/file={path.as_posix()}?v={digest}"


def head_of(*paths: Path) -> str:
    # Gradio loads a component's scripts in this order, each once a page, before its js_on_load runs.
    return "".join(f'<script src="{_address(path)}"></script>' for path in paths)


def _template(name: str) -> str:
    html = (TEMPLATES / name).read_text(encoding="utf-8")
    if any(mark in html for mark in ("${", "`", "\\", "{{")):
        raise ValueError(f"{name}: Gradio would evaluate this as a template; keep it static.")
    return html


class Scripted(gr.HTML):
    """What the components below share: a static template, a function that mounts it, none of Gradio's own styles."""

    def __init__(self, value: Any, template: str, mount: str, head: str = "", **kwargs: Any):
        super().__init__(
            value=value,
            html_template=_template(template),
            js_on_load=scripts.on_load(mount),
            css_template="",
            apply_default_css=False,
            head=head or None,
            **kwargs,
        )

    def preprocess(self, payload: Any) -> Any:
        return payload

    def postprocess(self, value: Any) -> Any:
        return value


class LiveView(Scripted):
    """Both text panes, the figures and the three live charts of a run.

    Its value is the run's wire text so far (see `run.wire.wire_line`), a growing string of lines: Gradio sends
    only what was appended, nothing is mounted anew, and a chart keeps the reader's zoom.

    Args:
        model: what `model_facts` says of the loaded model.
        export: a run's id and a kind in, `{"name", "text"}` of the file or `{"error"}` out.
        inspect: a run's id, a lane and a step in, `{"found", "error"}` out: `Inspector.for_page`.
        compare: ids of runs in, `{"found", "gone"}` out: `Inspector.compare`.
        align: a run's id and a lane, twice, in; their words side by side out: `Inspector.align`.
        recorded: the wire text of the run that is played while a visitor waits.
    """

    def __init__(
        self,
        model: dict[str, Any],
        export: Callable[[str, str], dict[str, str]],
        inspect: Callable[[str, str, int], dict[str, Any]],
        compare: Callable[[Any], dict[str, Any]],
        align: Callable[[Any], dict[str, Any]],
        recorded: Callable[[], str],
        **kwargs: Any,
    ):
        def export_run(wanted: Any) -> dict[str, str]:  # Gradio marks the function and hands on one argument
            run_id, kind = wanted if isinstance(wanted, list) and len(wanted) == 2 else ("", "")
            return export(run_id, kind)

        def inspect_step(wanted: Any) -> dict[str, Any]:
            run_id, lane, step = wanted if isinstance(wanted, list) and len(wanted) == 3 else ("", "", 0)
            return inspect(run_id, lane, step)

        def compare_runs(wanted: Any) -> dict[str, Any]:
            return compare(wanted)

        def align_answers(wanted: Any) -> dict[str, Any]:
            return align(wanted)

        def recorded_run(_: Any) -> str:
            return recorded()

        super().__init__(
            "",
            "live.html",
            "mountLive(element, props, watch, server)",
            head_of(plotly_script()),
            server_functions=[export_run, inspect_step, compare_runs, align_answers, recorded_run],
            model=model,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "string", "description": "NDJSON, shortened for the page"}


class LayerRange(Scripted):
    """A slider with two handles: layers that can be skipped, `[lo, hi]`, inclusive. Layer 0 always runs, so lo >= 1.

    It triggers `input` where a visitor moves a handle.

    Args:
        info: what a move changes on the screen.
    """

    def __init__(self, value: tuple[int, int], num_layers: int, info: str, **kwargs: Any):
        self.num_layers = num_layers
        super().__init__(
            list(value),
            "range.html",
            "mountRange(element, props, watch, trigger)",
            last=num_layers - 1,
            info=info,
            **kwargs,
        )

    def preprocess(self, payload: Any) -> tuple[int, int]:  # type: ignore[override]  # gr.HTML's is a text
        """The two bounds as whole numbers; `LoraDropConfig` checks them against the model."""
        if not isinstance(payload, list) or [type(bound) for bound in payload] != [int, int]:
            raise gr.Error("layers must be a range of two whole numbers.", print_exception=False)
        return payload[0], payload[1]

    def api_info(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


class WhatIf(Scripted):
    """What the settings would do, drawn in the browser with no model run.

    Args:
        model: what `model_facts` says of the loaded model.
        settings: what the controls hold at first, by name.
        presets: settings by preset name.
        prompt_tokens: tokens of the page's first prompt.
        count: counts a prompt's tokens with a model's tokenizer; the page calls it when the typing stops.
        table: the settings behind the controls, in their order (`Setting.facts`).
    """

    def __init__(
        self,
        model: dict[str, Any],
        settings: dict[str, Any],
        presets: dict[str, dict[str, Any]],
        prompt_tokens: int,
        count: Callable[[str, str | None], int | None],
        table: list[dict[str, Any]],
        **kwargs: Any,
    ):
        def count_tokens(wanted: Any) -> int | None:  # Gradio marks the function and hands on one argument
            prompt, chosen = wanted if isinstance(wanted, list) and len(wanted) == 2 else ("", None)
            return count(prompt, chosen)

        super().__init__(
            None,
            "whatif.html",
            "mountWhatIf(element, props, server)",
            server_functions=[count_tokens],
            model=model,
            settings=settings,
            presets=presets,
            prompt_tokens=prompt_tokens,
            table=table,
            **kwargs,
        )


class ModelFacts(Scripted):
    """Nothing to see: hands on what `page_facts` says of a model that was chosen, to all that the scripts draw.

    Its value is None for the model that the page was built over. It triggers `change` once a model is shown.

    Args:
        labels: the models that may be chosen.
    """

    def __init__(self, value: dict[str, Any] | None = None, labels: Sequence[str] = (), **kwargs: Any):
        super().__init__(
            value,
            "facts.html",
            "mountFacts(element, props, watch)",
            labels=list(labels),
            **kwargs,
        )


class PresetTable(Scripted):
    """The presets with what they were measured to do, to choose one; its value is the chosen name, or `custom`.

    It triggers `input` where a visitor chooses.

    Args:
        facts: what `preset_facts` says.
    """

    def __init__(self, facts: dict[str, Any], **kwargs: Any):
        super().__init__(
            facts["default"],
            "presets.html",
            "mountPresets(element, props, watch, trigger)",
            facts=facts,
            **kwargs,
        )


class Compare(Scripted):
    """Which corrections there are, and the choice of a third lane: the same schedule with one setting changed.

    Its value is the name of a comparison, or an empty text for none.

    Args:
        comparisons: by name, the `button` and the label of the `lane`.
    """

    def __init__(self, value: str, comparisons: dict[str, dict[str, str]], **kwargs: Any):
        super().__init__(
            value,
            "compare.html",
            "mountCompare(element, props, watch)",
            comparisons=comparisons,
            **kwargs,
        )


class Status(Scripted):
    """One line about the run, with a height of its own: `{"kind": "idle"|"running"|"done"|"error", "text": ...}`."""

    def __init__(self, text: str, **kwargs: Any):
        super().__init__(
            {"kind": "idle", "text": text},
            "status.html",
            "mountStatus(element, props, watch)",
            **kwargs,
        )


class FreeSlider(gr.Slider):
    """A slider that hands on whatever was typed: `Request` and `LoraDropConfig` name the limit in one clear line.

    Gradio's own check would answer with a pop-up of its own.
    """

    is_template = True  # the page draws it as a plain slider

    def preprocess(self, payload: Any) -> Any:
        return payload


class FreeNumber(gr.Number):
    """A number field that hands on whatever was typed, for the same reason."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload
