"""The break-it dial: from the full model to what skips nearly all, over the settings that no measured one beats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS
from lora_drop.run.results.files import SAMPLES
from lora_drop.run.results.preset_results import Measured, loss_of
from lora_drop.run.results.prompts import SAMPLE_PROMPTS
from lora_drop.run.results.rows import value_of
from lora_drop.run.results.safe_zone import Row, best_of, gain_of, is_safe, judged, place_of, setting_of
from lora_drop.run.results.store import whole_setting
from lora_drop.run.trace.records import BASELINE

PROMPT = SAMPLE_PROMPTS[0]  # that the samples answer


@dataclass(frozen=True)
class Stop:
    """A place of the dial.

    Args:
        label: what it is called.
        words: its loss and speed, in a sentence.
        config: what a run of it sets.
        sample: what it writes to `PROMPT`; None where that was not kept.
        reads_well: as measured.
    """

    label: str
    words: str
    config: LoraDropConfig
    sample: str | None
    reads_well: bool


def stops_of(measured: Measured, samples: list[dict[str, Any]], sweep: dict[str, Any] | None) -> list[Stop]:
    """The dial's stops, the full model first, then slower and better before faster and worse; none without rows.

    Args:
        measured: the presets' rows.
        samples: of `samples.json`, of the same weights.
        sweep: of the same weights; rows of another machine or number type are left out, as speeds do not compare.
    """
    rows = [*_of_presets(measured, samples), *_of_sweep(measured, sweep)]
    front = best_of([row for row in rows if loss_of(judged(row)) is not None])
    if not front:
        return []
    full = _sample(samples, BASELINE, None)
    if full is None and sweep:
        full = _text(sweep.get("sample"), PROMPT)
    never = Stop("Never skip", "The full model: no loss, 1.00×.", LoraDropConfig(period=1), full, True)
    return [never, *(stop for row in front if (stop := _stop(row)) is not None)]


def read_samples(revision: str, path: Path) -> list[dict[str, Any]]:
    """The samples that were written with these weights; none of others, or of a file that cannot be read."""
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
    asked = sweep.get("sample", {}).get("prompt") == PROMPT
    for row in sweep["rows"]:
        place = place_of(row)
        yield row | {"label": place[0].upper() + place[1:], "sample": row.get("sample") if asked else None}


def _where(about: dict[str, Any]) -> tuple[Any, ...]:
    return about.get("device", {}).get("name"), about.get("model", {}).get("dtype")


def _stop(row: Row) -> Stop | None:
    config, loss = setting_of(row), loss_of(judged(row))
    if config is None:
        return None
    well = is_safe(row)
    count = value_of(row, "layers_dropped")
    skipped = "" if count is None else f"{count:g} layers skipped. "
    verdict = "reads well" if well else "does not read well"
    words = f"{skipped}Quality loss {loss:.2f} nats per token: {verdict}. It {gain_of(row)}."
    return Stop(row["label"], words, config, row["sample"], well)


def _sample(samples: list[dict[str, Any]], lane: str, config: dict[str, Any] | None) -> str | None:
    """What a lane of the stored samples writes to `PROMPT`, if it is of the same setting."""
    for one in samples:
        if (one["prompt"], one["lane"]) == (PROMPT, lane):
            stored = one["config"]
            if config is None or (stored is not None and whole_setting(stored) == whole_setting(config)):
                return one["text"]
    return None


def _text(sample: Any, prompt: str) -> str | None:
    text = sample.get("text") if isinstance(sample, dict) and sample.get("prompt") == prompt else None
    return text if isinstance(text, str) else None
