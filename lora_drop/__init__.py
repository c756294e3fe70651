"""LoRA-Drop (arXiv 2601.02569): decode an LLM with most steps skipping a fixed set of layers.

    from lora_drop import LoraDropConfig, load_model, stream

    loaded = load_model("bundled")
    for record in stream(loaded, "Explain why the sky is blue.", LoraDropConfig(period=4)):
        ...

In a notebook, `lora_drop.show("Explain why the sky is blue.", preset="balanced")` runs and draws.

Names are imported when they are first used, so that reading a config does not load torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from lora_drop.runtime import VERSION, check_versions, configure

configure()

_HOMES = {
    "AdapterBank": "lora_drop.adapters.bank",
    "LoraDropConfig": "lora_drop.method.config",
    "LoraDropError": "lora_drop.errors",
    "generate": "lora_drop.run.generate",
    "stream": "lora_drop.run.generate",
    "with_": "lora_drop.run.generate",
    "load_model": "lora_drop.models.load",
    "read_trace": "lora_drop.run.show",
    "show": "lora_drop.run.show",
    "launch": "lora_drop.ui.start",
    "train": "lora_drop.training.train",
    "TrainJob": "lora_drop.training.settings",
    "TrainSettings": "lora_drop.training.settings",
}
__all__ = list(_HOMES)
__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        check_versions()
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lora_drop' has no attribute {name!r}")
