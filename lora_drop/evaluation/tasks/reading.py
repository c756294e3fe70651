"""Records read from the publishers' files. A broken line is reported once, with its file and number, and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


class BrokenRecord(ValueError):
    """A record that lacks something that its task needs."""


def text_of(path: Path, name: str, say: Say) -> str:
    """Read a file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        say(f"{name}: cannot be read ({error.strerror or error}); left out.")
    except UnicodeDecodeError:
        say(f"{name}: this is not UTF-8 text; left out.")
    return ""


def records_of(path: Path, name: str, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read (line, record) of a JSONL file, or of a TSV file with a header."""
    lines = enumerate(text_of(path, name, say).split("\n"), start=1)
    header = next(lines)[1].split("\t") if path.suffix == ".tsv" else None
    for number, line in lines:
        if not line.strip():
            continue
        if header is not None:
            cells = line.rstrip("\r").split("\t")
            if len(cells) != len(header):
                say(f"{name}, line {number}: {len(cells)} cells under {len(header)} headings; left out.")
                continue
            yield number, dict(zip(header, cells, strict=True))
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
        except (ValueError, RecursionError):
            say(f"{name}, line {number}: this is not a JSON object; left out.")
            continue
        yield number, record


def text_in(record: dict[str, Any], field: str, may_be_empty: bool = False) -> str:
    """The text in a field. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise BrokenRecord(f"there is no text in a field {field!r}")
    return value


def texts_in(record: dict[str, Any], field: str) -> tuple[str, ...]:
    """The texts in a field that holds a list of them. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise BrokenRecord(f"there is no list of texts in a field {field!r}")
    return tuple(value)


def index_in(record: dict[str, Any], field: str, count: int) -> int:
    """The number in a field, from 0 to `count` - 1. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise BrokenRecord(f"the field {field!r} is no number from 0 to {count - 1}")
    return value
