"""assets/trace.schema.json, from the types of the records: `python -m scripts.trace_schema` writes it anew."""

from __future__ import annotations

import json

from lora_drop.paths import ASSETS
from lora_drop.run.trace.records import trace_schema

FILE = ASSETS / "trace.schema.json"


def text() -> str:
    """The file's content."""
    return json.dumps(trace_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
