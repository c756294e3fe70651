"""Measure every preset, with its corrections and without: `presets.json`, which the page and `run` read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.measure.point import Point, check_point, circumstances, describe_data, measure
from lora_drop.evaluation.measure.protocol import COUNTS, measure_lanes
from lora_drop.evaluation.measure.texts import ANSWER_TOKENS, own_answers
from lora_drop.method.presets import COMPARISONS, Preset, Presets
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import lane_plan
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.files import PRESETS_FILE
from lora_drop.run.results.store import Content, Row, Store

# Figures of the protocol that a row has from its free text, under the names of a sweep's columns.
OF_FREE_TEXT = ("regret", "regret_low", "regret_high", "worst", "texts")


@dataclass(frozen=True)
class Case:
    """A preset as its file has it, checked against the model; `bare` is without its corrections, but with its head."""

    preset: Preset
    point: Point
    bare: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """The columns that identify its row."""
        return {"preset": self.preset.name, **self.point.key, "config": self.preset.config.differences()}

    @property
    def name(self) -> str:
        """Stands for the preset with its setting and its adapters."""
        return json.dumps([self.key, self.bare])

    def is_of(self, row: Row) -> bool:
        """True if a row is this case's, and was not refused."""
        same = row["preset"] == self.preset.name and row["corrections"] != self.bare and "refused" not in row
        return same and self.point.is_of(row, self.preset.config)


def measure_presets(
    loaded: LoadedModel,
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    prompts: PromptSet,
    folder: Path,
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    timed: Callable[[int, int], None] = lambda done, total: None,
    adapters: str | None = None,
) -> Content:
    """Measure every preset that the folder has no row of, and write `presets.json` after each row.

    A preset or a bank that has changed is measured again. Speeds come first, by `protocol.py`. Then quality is
    measured on the full model's own answers, on the given texts, and of the preset's answers.

    Args:
        pairs: prompts and targets of the given texts.
        source: where `pairs` come from, for the record.
        prompts: answered by the full model and by each preset.
        context_tokens: see `given_texts`.
        progress: called with the rows done and all of them, first with those already there.
        timed: called with the prompts that speeds are measured on: those done, and all of them.
        adapters: in place of the shipped ones, see `read_presets`.

    Returns:
        The content of the file: the presets, the model's order of layers, and rows with the sweep's columns, the
        `preset` and its `config`.

    Raises:
        LoraDropError: a preset, a bank or a record does not fit the model; the folder cannot be written, or holds
            other measurements.
    """
    presets = presets_of(loaded, adapters)
    cases = _cases(loaded, presets, pairs[0][0])
    content = PRESETS_FILE.begin(
        circumstances(loaded),
        order=list(presets.order),
        presets={
            name: {"note": preset.note, "config": presets.stored(preset).differences()}
            for name, preset in presets.items()
        },
        data=describe_data(pairs, source) | {"own": prompts.about},
        settings={"context_tokens": context_tokens, "tokens": ANSWER_TOKENS},
        notes=list(dict.fromkeys(note for case in cases for note in case.point.notes)),
    )
    store = Store(PRESETS_FILE, folder, content)
    rows = [store.first(case.is_of) for case in cases]
    missing = [case for case, row in zip(cases, rows, strict=True) if row is None]
    done = [row for row in rows if row]
    store.write(done)  # `COUNTS` beside it is of these circumstances
    lanes = {case.name: lane_plan(loaded, case.point.config, case.preset.name)[0] for case in missing}
    speeds = measure_lanes(loaded, lanes, prompts, folder, done, progress=timed)
    progress(len(done), len(rows))
    answers = own_answers(loaded, prompts.texts) if missing else None
    for i, case in enumerate(cases):
        if rows[i] is None:
            quality = measure(loaded, case.point, pairs, context_tokens, answers, free=True, prompts=None)
            speed = {name: value for name, value in speeds[case.name].items() if name not in OF_FREE_TEXT}
            rows[i] = case.key | quality | speed
            store.write(row for row in rows if row)
            progress(len(store.rows), len(rows))
    (folder / COUNTS).unlink(missing_ok=True)
    return store.content | {"rows": rows}


def _cases(loaded: LoadedModel, presets: Presets, prompt: str) -> list[Case]:
    """Each preset as it is, and without corrections where it has some; `prompt` checks that they fit the model."""
    cases: list[Case] = []
    for preset in presets.values():
        try:
            point = check_point(loaded, preset.config, prompt)
        except LoraDropError as error:
            raise LoraDropError(f"preset {preset.name}: {error}") from None
        stored = dataclasses.replace(preset, config=presets.stored(preset))
        cases.append(Case(stored, point))
        if point.fingerprint is not None:
            config = COMPARISONS["corrections-off"].applied_to(preset.config)
            cases.append(Case(stored, check_point(loaded, config, prompt), bare=True))
    return cases
