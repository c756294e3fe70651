"""Files of results: written whole or not at all, and gone on with only in the same circumstances.

A file stores a setting by its differences from the defaults (`LoraDropConfig.differences`), so that a setting which
is new leaves its rows in force; files that hold whole settings count too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.paths import write_files


def whole_setting(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored setting with the defaults for all that it does not name."""
    return LoraDropConfig().to_dict() | stored


def is_setting(stored: dict[str, Any], config: LoraDropConfig) -> bool:
    """Whether a stored setting is this one."""
    return whole_setting(stored) == config.to_dict()


def check_same(before: dict[str, Any], now: dict[str, Any], names: Iterable[str], folder: Path, what: str) -> None:
    """Refuse to go on with a file that was measured in other circumstances.

    Raises:
        LoraDropError: says which of `names` differ.
    """

    def part(content: dict[str, Any], name: str) -> Any:
        value = content.get(name)
        return whole_setting(value) if name == "settings" and isinstance(value, dict) else value

    if differing := [name for name in names if part(before, name) != part(now, name)]:
        raise LoraDropError(
            f"{folder.resolve().name} already holds {what} of another {' and '.join(differing)}: "
            "name another --out, or delete it."
        )


def read_result(
    path: Path, form: str, version: int, name: str, command: str, is_whole: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The content of a file of results.

    Args:
        form, version: what its `format` and `version` must be.
        name, command: what it is called and what writes it, for the message.
        is_whole: whether all that is read of it is there and of its kind; it may raise KeyError and TypeError.

    Raises:
        LoraDropError: it cannot be read, or is not what the command writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (form, version) or not is_whole(content):
            raise ValueError
    except OSError as error:
        raise LoraDropError(f"cannot read {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise LoraDropError(f"{path.name} is not a {name} of the {command} command.") from None
    return content


def json_text(result: dict[str, Any]) -> str:
    """A result as the text of its file."""
    return json.dumps(result, indent=1, allow_nan=False) + "\n"


def write_texts(texts: dict[str, str], folder: Path, what: str) -> None:
    """Write files by name, all of them or none.

    Raises:
        LoraDropError: the folder cannot be written; `what` is for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_files({folder / name: text for name, text in texts.items()})
    except OSError as error:
        raise LoraDropError(
            f"cannot write {what} to {folder.name}: {error.strerror or error}; what it held is whole."
        ) from None
