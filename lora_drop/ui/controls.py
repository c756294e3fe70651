"""Controls of the Run tab, made from the table of settings, and the values that they hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import gradio as gr

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.fields import RUN, SCHEDULE, Setting
from lora_drop.method.kinds import Choice, Flag, LayerList, Layers, Text, Whole
from lora_drop.method.settings import BY_NAME, SETTINGS, settings_of
from lora_drop.ui.components import FreeNumber, FreeSlider, LayerRange

# Settings with a control; those of a schedule come first, because a preset sets them.
SHOWN: tuple[Setting, ...] = tuple(
    sorted((setting for setting in SETTINGS if setting.label), key=lambda setting: (SCHEDULE, RUN).index(setting.of))
)


def linked(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Settings in a link to a run, in the order of the controls that it restores."""
    return (BY_NAME["compare"], *settings)


def is_text(setting: Setting) -> bool:
    """True if the control is a text field; so are optional numbers, as Gradio turns an empty number field into 0."""
    kind = setting.kind
    is_free = isinstance(kind, Text) and not kind.public
    return is_free or isinstance(kind, LayerList) or (kind.off and kind.python in (int, float))


def control_value(setting: Setting, value: Any) -> Any:
    """A setting's value as its control holds it."""
    return setting.kind.write(value) if is_text(setting) else list(value) if isinstance(value, tuple) else value


def control_values(config: LoraDropConfig, num_layers: int) -> dict[str, Any]:
    """Values of the schedule's controls for a config, by name, on a model of `num_layers` layers."""
    values = {setting.name: control_value(setting, getattr(config, setting.name)) for setting in settings_of(SCHEDULE)}
    return values | {"layers": list(config.layers or default_range(num_layers))}


def read_controls(settings: Iterable[Setting], values: Iterable[Any]) -> dict[str, Any]:
    """Read the settings from their controls' values, by name.

    Raises:
        LoraDropError: a text that cannot be read, or a value that a visitor may not choose.
    """
    read = {}
    for setting, value in zip(settings, values, strict=True):
        refuse_private(setting, value)
        # An empty field means off; the config refuses an empty field that it needs.
        read[setting.name] = None if setting.kind.off and value in ("", None) else setting.read(value)
    return read


def shown_with(repositories: Sequence[str], written: str) -> tuple[Setting, ...]:
    """`SHOWN`, where adapters may also be one of these repositories, or a text that fits the pattern `written`."""
    kind: Any = BY_NAME["adapters"].kind
    kind = dataclasses.replace(kind, public=(*kind.public, *repositories), written=written)
    return tuple(
        dataclasses.replace(setting, kind=kind) if setting.name == "adapters" else setting for setting in SHOWN
    )


def refuse_private(setting: Setting, value: Any) -> None:
    """Raise LoraDropError if the value names a folder of the server, or a repository that no visitor may choose."""
    kind = setting.kind
    if not isinstance(kind, Text) or not kind.public or value in kind.public:
        return
    if not (kind.written and isinstance(value, str) and re.fullmatch(kind.written, value, re.ASCII)):
        more = " or a repository USER/REPO" if kind.written else ""
        raise LoraDropError(f"{setting.name} must be {' or '.join(kind.public)}{more}.")


def build_controls(
    settings: Iterable[Setting], values: dict[str, Any], num_layers: int
) -> dict[str, gr.components.Component]:
    """Build controls inside the open layout block; returns them by name.

    Args:
        values: the first value of each, by name (`control_value`).
    """
    built: dict[str, gr.components.Component] = {}
    for row, group in groupby(settings, key=lambda setting: setting.row or setting.name):
        together = list(group)
        with gr.Row() if any(setting.row == row for setting in together) else nullcontext():
            built |= {setting.name: _control(setting, values[setting.name], num_layers) for setting in together}
    return built


def _control(setting: Setting, value: Any, num_layers: int) -> gr.components.Component:
    kind = setting.kind
    beside: dict[str, Any] = {"label": setting.label, "elem_id": element_id(setting), "info": setting.info or None}
    if isinstance(kind, Layers):
        return LayerRange(list(value), last=num_layers - 1, info=setting.info, elem_id=element_id(setting))
    if setting.span:
        low, high, step = setting.span
        return FreeSlider(low, high, value, step=step, buttons=[], **beside)
    if isinstance(kind, Text) and kind.written:
        return gr.Dropdown(kind.labelled, value=value, allow_custom_value=True, **beside)
    if isinstance(kind, Choice) or (isinstance(kind, Text) and kind.public):
        return (gr.Dropdown if len(kind.labelled) > 2 else gr.Radio)(kind.labelled, value=value, **beside)
    if isinstance(kind, Flag):
        return gr.Checkbox(value, **beside)
    if is_text(setting):
        placeholder = (
            f"e.g. {setting.metavar}" if isinstance(kind, LayerList) else "none" if setting.of == RUN else "off"
        )
        return gr.Textbox(value, placeholder=placeholder, **beside)
    return FreeNumber(value, precision=0 if isinstance(kind, Whole) else None, **beside)


def element_id(setting: Setting) -> str:
    """Id of the control's element: `ld-` and the flag's name."""
    return f"ld{setting.flag[1:]}"
