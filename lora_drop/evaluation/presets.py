"""Every preset measured, with its adapters and without.

The rows of `presets.json` are the sweep's own (`measure.measure`). The file is whole after each row: called again,
what is missing is measured, and what a changed preset or bank makes out of date, anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import (
    SPEED_TOKENS,
    Point,
    check_point,
    circumstances,
    describe_data,
    describe_prompts,
    measure,
)
from lora_drop.evaluation.measure.prompts import HELD_OUT
from lora_drop.evaluation.measure.texts import own_answers
from lora_drop.evaluation.results.preset_results import FORMAT, JSON_NAME, VERSION, read_presets
from lora_drop.evaluation.results.store import check_same, is_setting, json_text, write_texts
from lora_drop.method.presets import Preset, presets_for
from lora_drop.models.load import LoadedModel

TIMED = 8  # prompts that the speed is measured on
SAME = ("format", "version", "model", "device", "data", "settings", "software")  # of two files that are one


@dataclass(frozen=True)
class Case:
    """A preset with one choice of adapters, checked against the model."""

    preset: Preset
    point: Point
    bare: bool = False  # without the adapters that a run of the preset takes

    @property
    def key(self) -> dict[str, Any]:
        """What identifies its row."""
        return {
            "preset": self.preset.name,
            "config": self.preset.config.differences(),
            "adapters": self.point.adapters,
            "adapters_fingerprint": self.point.fingerprint,
        }

    def is_of(self, row: dict[str, Any]) -> bool:
        """Whether a row is this case's."""
        same = all(row[name] == value for name, value in self.key.items() if name != "config")
        return same and is_setting(row["config"], self.preset.config)


def measure_presets(
    loaded: LoadedModel,
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    folder: Path,
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure every preset with its adapters and without, and write `presets.json` after each row.

    Quality is that on the full model's own answers to the held-out prompts, on the given texts and, with the adapters,
    of the preset's own answers.

    Args:
        source: where `pairs` come from, for the record.
        progress: called with the rows done and all of them, first with those already there.

    Returns:
        The content of the file: the sweep's columns, and each row's `preset` and the preset's `config`.

    Raises:
        LoraDropError: a preset, a bank or a record does not fit the model; the folder cannot be written, or holds
            other measurements.
    """
    cases = _cases(loaded, pairs[0][0])
    prompts = list(HELD_OUT)
    result = {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "data": describe_data(pairs, source) | {"own": describe_prompts(prompts)},
        "settings": {"context_tokens": context_tokens, "speed_tokens": SPEED_TOKENS, "timed": TIMED},
        "notes": list(dict.fromkeys(note for case in cases for note in case.point.notes)),
        "rows": [],
    }
    there: list[dict[str, Any]] = []
    if (folder / JSON_NAME).exists():
        before = read_presets(folder / JSON_NAME)
        check_same(before, result, SAME, folder, "presets")
        there = before["rows"]
    rows = [next(filter(case.is_of, there), None) for case in cases]
    done = len(cases) - rows.count(None)
    progress(done, len(cases))
    answers = own_answers(loaded, prompts) if done < len(cases) else None
    for i, case in enumerate(cases):
        if rows[i] is None:
            texts = pairs, context_tokens, answers
            timed = [prompt for prompt, _ in pairs[:TIMED]]
            rows[i] = case.key | measure(loaded, case.point, *texts, free=not case.bare, prompts=timed)
            result["rows"] = [row for row in rows if row]
            write_texts({JSON_NAME: json_text(result)}, folder, "the presets")
            done += 1
            progress(done, len(cases))
    result["rows"] = rows
    return result


def _cases(loaded: LoadedModel, prompt: str) -> list[Case]:
    """Each preset as it is, and without adapters where it takes some."""
    cases: list[Case] = []
    for preset in presets_for(loaded.id).values():
        try:
            point = check_point(loaded, preset.config, prompt)
        except LoraDropError as error:
            raise LoraDropError(f"preset {preset.name}: {error}") from None
        cases.append(Case(preset, point))
        if point.fingerprint is not None:
            cases.append(Case(preset, check_point(loaded, preset.config.replace(adapters="none"), prompt), bare=True))
    return cases
