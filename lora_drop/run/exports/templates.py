"""HTML files from templates: their blanks are filled with text that stays text."""

from __future__ import annotations

import html
import re

from lora_drop.paths import ASSETS
from lora_drop.run.trace.records import Header

TEMPLATES = ASSETS / "html"


def printable(text: str) -> str:
    """The text with lone surrogates replaced: a token may end amid a character, and UTF-8 and strict readers of JSON
    (Perfetto's) refuse such a half."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def escaped(text: str) -> str:
    """The text as HTML that shows it."""
    return html.escape(printable(text))


def filled(template: str, blanks: dict[str, str]) -> str:
    """A template of `assets/html` with its `{{name}}` blanks filled, in one pass: a value may contain `{{name}}`."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda blank: blanks[blank[1]], text)


def place_of(header: Header) -> str:
    """Model, number type and device of a run, in words."""
    model = header.model
    return f"{model['id'].removeprefix('bundled:')}, {model['dtype']}, on {header.device['name']}"
