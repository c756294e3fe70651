"""Models: one door to the bundled one, the Hub's, a folder's and random ones, and what turns text into tokens.

Above `decode`, which knows no text. `load.py` is the door; `bundled.py` keeps the bundled model's folder,
`download.py` gets its file, `gguf.py` reads it; `hub.py`, `place.py` and `random_weights.py` serve the others;
`tokens.py` has the prompts' way to tokens and back; `pool.py` lends one model at a time to many visitors.

The names below are imported when they are first used: `download` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "load_model": "load",
    "LoadedModel": "load",
    "BUNDLED_ID": "load",
    "ModelPool": "pool",
    "allowed_models": "pool",
    "encode_prompt": "tokens",
    "encode_text": "tokens",
    "Detokenizer": "tokens",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
