"""What the presets were measured to do: the file that the `presets` command wrote, read for the page and for `run`.

A row counts only if it says what a run of the preset would do now: same weights, same settings, same adapters. What
is known of a preset comes from such a row alone; nothing here is set by hand but the limit of "reads well".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.results import is_setting
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS, presets_for
from lora_drop.paths import SHIPPED_PRESETS

FORMAT, VERSION = "lora-drop-presets", 1
JSON_NAME = "presets.json"
NOT_MEASURED = "not measured on this model"

# The most quality loss, in nats per token over all steps, at which a text is still said to read well:
# a perplexity 16% higher. Settings of the bundled model that lose this much write fluent text on the prompt's subject;
# at 0.4 statements go wrong, at 0.9 the text goes in circles (the README's table of untrained rules).
READS_WELL_GAP = 0.15

# Of a row: the figures that are shown, by their names in the file.
FIGURES = {
    "agreement": "lora_steps_top1_agreement",  # share of LoRA steps with the full model's next token
    "nll_gap": "all_steps_nll_gap",  # nats
    "speedup": "speedup",
    "bound": "bound",
    "kv_saved": "kv_saved",  # share
}


@dataclass(frozen=True)
class Measured:
    """The rows of a file that hold for a model and its adapters as they are now.

    Args:
        rows: by preset, measured with the adapters that a run of the preset takes.
        bare: by preset, the same without adapters; none where the preset takes none anyway.
        about: model, device and data of the measurement; empty without rows.
        missing: why there are no rows; empty if there are some.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    bare: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


def figures(row: dict[str, Any]) -> dict[str, float | None]:
    """The figures of a row that are shown, by their short names."""
    return {name: row.get(column) for name, column in FIGURES.items()}


def reads_well(row: dict[str, Any]) -> bool:
    """Whether a text of such a row reads well: the one place that says so, from the measured gap alone."""
    gap = row.get(FIGURES["nll_gap"])
    return gap is not None and gap <= READS_WELL_GAP


def measured_presets(
    model: str, revision: str, fingerprint_of: Callable[[LoraDropConfig], str | None], path: Path | None = None
) -> Measured:
    """What is known of the presets on a model.

    Args:
        model, revision: its id, and the fingerprint of its weights.
        fingerprint_of: the fingerprint of the bank that a config takes on it; None without one.
        path: the file; None is the shipped one.

    Raises:
        LoraDropError: there is a file, but it is broken.
    """
    path = path or SHIPPED_PRESETS / JSON_NAME
    if not path.exists():
        return Measured(missing=NOT_MEASURED)
    content = read_presets(path)
    if content["model"]["revision"] != revision:
        return Measured(missing=NOT_MEASURED)
    rows, bare = {}, {}
    for name, preset in presets_for(model).items():
        taken = fingerprint_of(preset.config)
        for row in content["rows"]:
            if row["preset"] != name or not is_setting(row["config"], preset.config):
                continue
            if row["adapters_fingerprint"] == taken:
                rows[name] = row
            elif row["adapters_fingerprint"] is None:
                bare[name] = row
    if not rows:
        return Measured(missing="not measured with these presets and adapters")
    return Measured(rows, bare, {name: content[name] for name in ("model", "device", "data", "date")})


def default_preset(measured: Measured) -> str:
    """The preset that the page opens on: of those that read well the fastest, by its bound.

    If none reads well it is the one that loses the least; if none was measured, the first.
    """
    gaps = {name: row[FIGURES["nll_gap"]] for name, row in measured.rows.items()}
    good = [name for name in gaps if reads_well(measured.rows[name])]
    if good:
        return max(good, key=lambda name: measured.rows[name]["bound"])
    known = [name for name, gap in gaps.items() if gap is not None]
    return min(known, key=lambda name: gaps[name], default=next(iter(PRESETS)))


def in_words(row: dict[str, Any], about: dict[str, Any]) -> str:
    """A row's quality in a line, with where it was measured."""
    agreement, gap = row[FIGURES["agreement"]], row[FIGURES["nll_gap"]]
    if agreement is None or gap is None:
        return "it has no LoRA step"
    verdict = "reads well" if reads_well(row) else "does not read well"
    where = f"{about['data']['file']}, {about['model']['dtype']} on {about['device']['name']}"
    return (
        f"same next token as the full model at {agreement:.1%} of LoRA steps, quality loss {gap:+.3f} nats per token "
        f"over all steps: {verdict} ({row['tokens']:,} tokens of {where})"
    )


def read_presets(path: Path) -> dict[str, Any]:
    """The content of a presets file.

    Raises:
        LoraDropError: it cannot be read, or is not what the `presets` command writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION) or not _is_whole(content):
            raise ValueError
    except OSError as error:
        raise LoraDropError(f"cannot read {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise LoraDropError(f"{path.name} is not a {JSON_NAME} of the presets command.") from None
    return content


def _is_whole(content: dict[str, Any]) -> bool:
    """Whether all that is shown is there and of its kind; a missing key raises KeyError."""
    about = (content["model"], content["device"], content["data"])
    texts = (
        *(content["model"][name] for name in ("id", "revision", "dtype")),
        *(content["device"]["name"], content["data"]["file"], content["date"]),
    )
    return (
        all(isinstance(part, dict) for part in about)
        and all(isinstance(text, str) for text in texts)
        and all(map(_is_row, content["rows"]))
    )


def _is_row(row: dict[str, Any]) -> bool:
    numbers = [row[column] for column in FIGURES.values()]
    return (
        isinstance(row["preset"], str)
        and isinstance(row["config"], dict)
        and isinstance(row["adapters"], str)
        and isinstance(row["adapters_fingerprint"], (str, type(None)))
        and all(map(_is_number, (row["tokens"], row["bound"])))
        and all(number is None or _is_number(number) for number in numbers)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
