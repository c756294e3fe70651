"""A run: a request in, lanes that take turns on one device, the records of its trace out.

`request.py` checks what is asked for; `run.py` is the run, `generate.py` the library's two calls; `records.py` has the
trace's records, `lines.py` how they are written and read, `trace.py` gathers and reads them, `exports/` makes files of
them. Every figure of a run is computed here.

The names below are imported when they are first used: reading a trace needs no torch. `run` and `generate` are named
as their modules are: `from lora_drop.run.run import run`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Request": "request",
    "Plan": "request",
    "plan": "request",
    "Trace": "trace",
    "gather": "trace",
    "read_trace": "trace",
    "parse_trace": "trace",
    "Record": "records",
    "trace_schema": "lines",
    "write_line": "lines",
    "wire_line": "lines",
    "stream": "generate",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
