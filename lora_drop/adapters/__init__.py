"""Adapters: the trained corrections of a model in a folder, and which of them a config takes.

The tensors themselves are `decode.correction.Correction`; `bank.py` saves, loads and checks them, `find.py` knows what
`auto` and a folder's name mean. The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AdapterBank": "bank",
    "find_bank": "find",
    "bank_folder": "find",
    "bank_facts": "find",
    "bank_fingerprint": "find",
    "config_fingerprint": "find",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
