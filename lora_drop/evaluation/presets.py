"""Measure every preset, with its corrections and without: `presets.json`, which the page and `run` read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.adapters.find import base_of
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
from lora_drop.evaluation.measure.texts import own_answers
from lora_drop.method.presets import COMPARISONS, Preset, presets_for
from lora_drop.models.load import LoadedModel
from lora_drop.run.results.files import PRESETS_FILE
from lora_drop.run.results.store import Content, Row, Store

TIMED = 8  # prompts that the speed is measured on


@dataclass(frozen=True)
class Case:
    """A preset checked against the model; `bare` is without corrections, but with its head and `accept`."""

    preset: Preset
    point: Point
    bare: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """The columns that identify its row."""
        return {"preset": self.preset.name, **self.point.key, "config": self.preset.config.differences()}

    def is_of(self, row: Row) -> bool:
        """True if a row is this case's."""
        same = row["preset"] == self.preset.name and row["corrections"] != self.bare
        return same and self.point.is_of(row, self.preset.config)


def measure_presets(
    loaded: LoadedModel,
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    prompts: Sequence[str],
    folder: Path,
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """Measure every preset that the folder has no row of, and write `presets.json` after each row.

    A preset or a bank that has changed is measured again. Quality is measured on the full model's own answers, on
    the given texts, and of the preset's answers.

    Args:
        pairs: prompts and targets of the given texts; the speed is measured on the first `TIMED` prompts.
        source: where `pairs` come from, for the record.
        prompts: answered by the full model and by each preset.
        context_tokens: see `given_texts`.
        progress: called with the rows done and all of them, first with those already there.

    Returns:
        The content of the file. Its rows have the sweep's columns, and each row's `preset` and the preset's `config`.

    Raises:
        LoraDropError: a preset, a bank or a record does not fit the model; the folder cannot be written, or holds
            other measurements.
    """
    cases = _cases(loaded, pairs[0][0])
    content = PRESETS_FILE.begin(
        circumstances(loaded),
        data=describe_data(pairs, source) | {"own": describe_prompts(prompts)},
        settings={"context_tokens": context_tokens, "speed_tokens": SPEED_TOKENS, "timed": TIMED},
        notes=list(dict.fromkeys(note for case in cases for note in case.point.notes)),
    )
    store = Store(PRESETS_FILE, folder, content)
    rows = [store.first(case.is_of) for case in cases]
    missing = rows.count(None)
    progress(len(rows) - missing, len(rows))
    answers = own_answers(loaded, prompts) if missing else None
    timed = [prompt for prompt, _ in pairs[:TIMED]]
    for i, case in enumerate(cases):
        if rows[i] is None:
            figures = measure(loaded, case.point, pairs, context_tokens, answers, free=True, prompts=timed)
            rows[i] = case.key | figures
            store.write(row for row in rows if row)
            progress(len(store.rows), len(rows))
    return store.content | {"rows": rows}


def _cases(loaded: LoadedModel, prompt: str) -> list[Case]:
    """Each preset as it is, and without corrections where it has some; `prompt` checks that they fit the model."""
    cases: list[Case] = []
    for preset in presets_for(base_of(loaded)).values():
        try:
            point = check_point(loaded, preset.config, prompt)
        except LoraDropError as error:
            raise LoraDropError(f"preset {preset.name}: {error}") from None
        cases.append(Case(preset, point))
        if point.fingerprint is not None:
            config = COMPARISONS["corrections-off"].applied_to(preset.config)
            cases.append(Case(preset, check_point(loaded, config, prompt), bare=True))
    return cases
