"""Read prompts, and prompts with targets, from a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lora_drop.errors import LoraDropError, reading

MAX_LINE = 2**26  # characters of a record


def read_pairs(path: str | Path, prompt_field: str, target_field: str, limit: int | None) -> Iterator[tuple[str, str]]:
    """Read (prompt, target) of each record. Raises LoraDropError: see `_read`."""
    return ((prompt, target) for prompt, target in _read(path, (prompt_field, target_field), limit))


def read_prompts(path: str | Path, prompt_field: str, limit: int | None = None) -> list[str]:
    """Read the prompt of each record. Raises LoraDropError: see `_read`."""
    return [prompt for (prompt,) in _read(path, (prompt_field,), limit)]


def _read(path: str | Path, fields: tuple[str, ...], limit: int | None) -> Iterator[tuple[str, ...]]:
    """Read the texts of some fields of each record.

    Raises:
        LoraDropError: the file cannot be read, a line is not JSON or lacks a field, or there is no record.
    """
    path, count = Path(path), 0
    with reading(path.name), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), ""), start=1):
            if len(line) == MAX_LINE:  # a device may have no end
                raise LoraDropError(f"{path.name}, line {number}: this is too long for a record.")
            if not line.strip():
                continue
            if limit is not None and count >= limit:
                return
            yield _texts(line, f"{path.name}, line {number}", fields)
            count += 1
    if not count:
        raise LoraDropError(f"{path.name} holds no record.")


def _texts(line: str, where: str, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise LoraDropError(f"{where}: this is not JSON.") from None
    for name in names:
        if not isinstance(record, dict) or not isinstance(record.get(name), str) or not record[name].strip():
            fields = ", ".join(record) if isinstance(record, dict) else "none"
            raise LoraDropError(f"{where}: there is no text in a field {name!r}; the fields are: {fields}.")
    return tuple(record[name] for name in names)
