"""The break-it dial: settings of the measured frontier, from the full model to skipping nearly all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS
from lora_drop.run.results.files import SAMPLES
from lora_drop.run.results.preset_results import Measured, loss_of, reads_well
from lora_drop.run.results.prompts import SAMPLE_PROMPTS
from lora_drop.run.results.rows import value_of
from lora_drop.run.results.safe_zone import Row, best_of, gain_of, place_of, setting_of
from lora_drop.run.results.store import whole_setting
from lora_drop.run.trace.records import BASELINE

PROMPT = SAMPLE_PROMPTS[0]  # of the samples


@dataclass(frozen=True)
class Stop:
    """A stop of the dial.

    Args:
        words: its loss and speed, in a sentence.
        config: of a run.
        sample: its answer to `PROMPT`; None if that is not stored.
        reads_well: as measured.
    """

    label: str
    words: str
    config: LoraDropConfig
    sample: str | None
    reads_well: bool


def stops_of(measured: Measured, samples: list[dict[str, Any]], sweep: dict[str, Any] | None) -> list[Stop]:
    """The stops of the dial: the full model, then the frontier from slow and good to fast and bad; none without rows.

    Args:
        measured: the presets' rows.
        samples: of `samples.json`, written with the same weights.
        sweep: of the same weights; left out if it is of another machine or number type, as speeds do not compare.
    """
    rows = [*_of_presets(measured, samples), *_of_sweep(measured, sweep)]
    front = best_of([row for row in rows if loss_of(row) is not None])
    if not front:
        return []
    full = _sample(samples, BASELINE, None)
    if full is None and sweep:
        full = _text(sweep.get("sample"), PROMPT)
    never = Stop("Never skip", "The full model: no loss, 1.00×.", LoraDropConfig(period=1), full, True)
    return [never, *(stop for row in front if (stop := _stop(row)) is not None)]


def read_samples(revision: str, path: Path) -> list[dict[str, Any]]:
    """Read the samples that these weights wrote; none of other weights, or if the file cannot be read."""
    try:
        content = SAMPLES.read(path)
    except LoraDropError:
        return []
    return content["samples"] if content["model"]["revision"] == revision else []


def _of_presets(measured: Measured, samples: list[dict[str, Any]]) -> Iterator[Row]:
    for name, row in measured.rows.items():
        yield row | {"label": PRESETS[name].label, "sample": _sample(samples, name, row["config"])}


def _of_sweep(measured: Measured, sweep: dict[str, Any] | None) -> Iterator[Row]:
    if not sweep or (measured.rows and _where(sweep) != _where(measured.about)):
        return
    is_same_prompt = sweep.get("sample", {}).get("prompt") == PROMPT
    for row in sweep["rows"]:
        place = place_of(row)
        yield row | {"label": place[0].upper() + place[1:], "sample": row.get("sample") if is_same_prompt else None}


def _where(about: dict[str, Any]) -> tuple[Any, ...]:
    return about.get("device", {}).get("name"), about.get("model", {}).get("dtype")


def _stop(row: Row) -> Stop | None:
    config, loss = setting_of(row), loss_of(row)
    if config is None:
        return None
    well = reads_well(row)
    count = value_of(row, "layers_dropped")
    skipped = "" if count is None else f"{count:g} layers skipped. "
    verdict = "reads well" if well else "does not read well"
    words = f"{skipped}Quality loss {loss:.2f} nats per token: {verdict}. It {gain_of(row)}."
    return Stop(row["label"], words, config, row["sample"], well)


def _sample(samples: list[dict[str, Any]], lane: str, config: dict[str, Any] | None) -> str | None:
    """A lane's stored answer to `PROMPT`, if it is of the same setting."""
    for one in samples:
        if (one["prompt"], one["lane"]) == (PROMPT, lane):
            stored = one["config"]
            if config is None or (stored is not None and whole_setting(stored) == whole_setting(config)):
                return one["text"]
    return None


def _text(sample: Any, prompt: str) -> str | None:
    text = sample.get("text") if isinstance(sample, dict) and sample.get("prompt") == prompt else None
    return text if isinstance(text, str) else None
