"""The files of a sweep: `sweep.json`, all of it, and `sweep.csv`, its rows."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.results.store import json_text, write_texts
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.kinds import LayerList, Layers
from lora_drop.method.settings import settings_of

FORMAT, VERSION = "lora-drop-sweep", 1
MAX_SWEEP = 2**26  # characters of a file; a point takes about a thousand
CSV_NAME, JSON_NAME = "sweep.csv", "sweep.json"


def write_sweep(result: dict[str, Any], folder: Path) -> None:
    """Write `sweep.json` and `sweep.csv`, each whole or not at all: a killed sweep leaves the last point's files.

    Raises:
        LoraDropError: the folder cannot be written.
    """
    table, columns = io.StringIO(), dict.fromkeys(name for row in result["rows"] for name in row)
    columns.pop("sample", None)  # a text of many lines
    # A row may be older than a setting.
    writer = csv.DictWriter(table, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in result["rows"])
    # The JSON last: a sweep goes on from it, so what it holds must be in the table already.
    write_texts({CSV_NAME: table.getvalue(), JSON_NAME: json_text(result)}, folder, "the sweep")


def read_sweep(path: Path) -> dict[str, Any]:
    """A sweep from its JSON file.

    Raises:
        LoraDropError: the file cannot be read or is not a sweep.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_SWEEP + 1)  # a device or a pipe may have no end
        if len(text) > MAX_SWEEP:
            raise LoraDropError(f"{path.name} is too long to be a {JSON_NAME} of the sweep command.")
        result = json.loads(text)
        if not isinstance(result, dict):
            raise ValueError
        parts_fit = all(
            isinstance(result.get(name, {}), dict) for name in ("model", "device", "data", "settings", "sample")
        )
        if not parts_fit or not all(map(_is_row, result["rows"])):
            raise ValueError
    except LoraDropError:
        raise
    except OSError as error:
        raise LoraDropError(f"cannot read the sweep {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise LoraDropError(f"{path.name} is not a {JSON_NAME} of the sweep command.") from None
    return {"notes": []} | result


def _cell(name: str, value: Any) -> Any:
    return _LISTS[name].write(value) if name in _LISTS else value


_KINDS = {one.name: one.kind for one in settings_of(SCHEDULE)}
_LISTS = {name: kind for name, kind in _KINDS.items() if isinstance(kind, (Layers, LayerList))}
_TEXTS = {name for name, kind in _KINDS.items() if kind.python is str} | {
    "adapters_fingerprint",
    "decoder",
    "own_answers_sha256",
    "sample",
}


def _is_row(row: Any) -> bool:
    """A row of the sweep's columns: texts, finite numbers and lists of layers, None where there is no value."""
    return (
        isinstance(row, dict)
        and all(isinstance(row[name], str) for name in ("reuse", "part"))
        and all(row[name] is not None for name in ("drop_ratio", "period"))
        and all(
            value is None
            or (
                isinstance(value, list) and all(type(layer) is int for layer in value)
                if name in _LISTS
                else isinstance(value, str)
                if name in _TEXTS
                else isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            )
            for name, value in row.items()
        )
    )
