"""Read prompts, and prompts with targets, from a JSON Lines file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError, reading
from lora_drop.paths import REPORT_PROMPTS

MAX_LINE = 2**26  # characters of a record


@dataclass(frozen=True)
class PromptSet:
    """Prompts that a measurement runs on.

    Args:
        kinds: of each prompt, such as `chat`; empty where its record has no field `kind`.
        about: `file`, the `sha256` of its bytes, and the number of `prompts` read, for the record.
    """

    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    about: dict[str, Any]


def read_prompt_set(path: Path = REPORT_PROMPTS, field: str = "prompt", limit: int | None = None) -> PromptSet:
    """Read prompts with their kinds, by default those that figures are reported on.

    The kinds of the default file take turns, so that its first prompts hold as many of each.

    Raises:
        LoraDropError: see `_read`.
    """
    texts, kinds = zip(*_read(path, (field,), limit, "kind"), strict=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PromptSet(texts, kinds, {"file": path.name, "sha256": digest, "prompts": len(texts)})


def read_pairs(path: str | Path, prompt_field: str, target_field: str, limit: int | None) -> Iterator[tuple[str, str]]:
    """Read (prompt, target) of each record. Raises LoraDropError: see `_read`."""
    return ((prompt, target) for prompt, target in _read(path, (prompt_field, target_field), limit))


def read_prompts(path: str | Path, prompt_field: str, limit: int | None = None) -> list[str]:
    """Read the prompt of each record. Raises LoraDropError: see `_read`."""
    return [prompt for (prompt,) in _read(path, (prompt_field,), limit)]


def _read(path: str | Path, fields: tuple[str, ...], limit: int | None, *optional: str) -> Iterator[tuple[str, ...]]:
    """Read the texts of some fields of each record, then those of `optional` fields, which may be missing or empty.

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
            yield _texts(line, f"{path.name}, line {number}", fields, optional)
            count += 1
    if not count:
        raise LoraDropError(f"{path.name} holds no record.")


def _texts(line: str, where: str, names: tuple[str, ...], optional: tuple[str, ...]) -> tuple[str, ...]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise LoraDropError(f"{where}: this is not JSON.") from None
    for name in names:
        if not isinstance(record, dict) or not isinstance(record.get(name), str) or not record[name].strip():
            fields = ", ".join(record) if isinstance(record, dict) else "none"
            raise LoraDropError(f"{where}: there is no text in a field {name!r}; the fields are: {fields}.")
    return (*(record[name] for name in names), *(str(record.get(name) or "") for name in optional))
