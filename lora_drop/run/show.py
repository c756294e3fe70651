"""For notebooks: a run in one call, and its drawing where a trace is a cell's last value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_drop.errors import LoraDropError
from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.presets import config_from
from lora_drop.method.settings import settings_of
from lora_drop.run.exports.figures.run import run_svg
from lora_drop.run.trace.trace import Trace, gather, read_trace

if TYPE_CHECKING:
    from lora_drop.models.load import LoadedModel

__all__ = ["read_trace", "show"]
Trace.drawing = staticmethod(run_svg)  # from here on a notebook draws every trace


def show(prompt: str, preset: str | None = "balanced", model: LoadedModel | str = "bundled", **settings: Any) -> Trace:
    """Run a prompt with the full model and with LoRA-Drop; a notebook draws the result.

    Args:
        prompt: the text to answer.
        preset: name of a preset; None for the defaults.
        model: from `load_model`, or a name for it.
        settings: of `LoraDropConfig` or of a run (`max_new_tokens`, `temperature`, ...), in place of the preset's.

    Returns:
        The trace of the run.

    Raises:
        LoraDropError: no such setting, or one that does not fit the model.
    """
    # These import torch, which `read_trace` does not need.
    from lora_drop.adapters.find import bank_settings
    from lora_drop.models.load import load_model
    from lora_drop.run.request import Request
    from lora_drop.run.results.bank_presets import presets_of
    from lora_drop.run.run import run

    run_names = {setting.name for setting in settings_of(RUN)}
    if unknown := settings.keys() - run_names - {setting.name for setting in settings_of(SCHEDULE)}:
        raise LoraDropError(f"no such setting: {', '.join(sorted(unknown))}. docs/settings.md has all of them.")
    loaded = load_model(model) if isinstance(model, str) else model
    defaults = {} if preset else bank_settings(settings.get("adapters"))
    config = config_from({"preset": preset, **settings}, presets_of(loaded, settings.get("adapters")), defaults)
    run_settings = {name: value for name, value in settings.items() if name in run_names}
    return gather(run(loaded, Request(prompt, config, **run_settings)))
