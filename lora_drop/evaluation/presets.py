"""Every preset measured, with its adapters and without, and texts that it wrote.

The rows of `presets.json` are the sweep's own (`sweep.measure`). The texts of `samples.json` and `samples.md` are
unpicked: all of `SAMPLE_PROMPTS`, greedy, for the full model and for each preset. Files are whole after each row and
each text: called again, what is missing is measured, and what a changed preset or bank makes out of date, anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.preset_results import FORMAT, JSON_NAME, VERSION, read_presets
from lora_drop.evaluation.prompts import SAMPLE_PROMPTS
from lora_drop.evaluation.sweep import (
    SPEED_TOKENS,
    Point,
    check_point,
    check_same,
    circumstances,
    describe_data,
    json_text,
    measure,
    write_texts,
)
from lora_drop.method.presets import Preset, presets_for
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import BASELINE, LORA_DROP, Request
from lora_drop.run.run import run
from lora_drop.run.trace import first_divergence, gather

SAMPLES_FORMAT = "lora-drop-samples"
SAMPLES_JSON, SAMPLES_MD = "samples.json", "samples.md"
SAMPLE_SETTINGS = {"max_new_tokens": 96, "temperature": 0.0, "seed": 0}
SAME = ("format", "version", "model", "device", "settings", "software")  # of two files that are one
SAMPLE_KEY = ("prompt", "lane", "config", "adapters_fingerprint")  # tells samples apart


@dataclass(frozen=True)
class Case:
    """A preset with one choice of adapters, checked against the model."""

    preset: Preset
    point: Point

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row apart."""
        return {
            "preset": self.preset.name,
            "config": self.preset.config.to_dict(),
            "adapters": self.point.adapters,
            "adapters_fingerprint": self.point.fingerprint,
        }


def measure_presets(
    loaded: LoadedModel,
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    folder: Path,
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure every preset with its adapters and without, and write `presets.json` after each row.

    Args:
        source: where `pairs` come from, for the record.
        progress: told the rows done and all of them, first with those already there.

    Returns:
        The content of the file: the sweep's columns, and each row's `preset` and the preset's `config`.

    Raises:
        LoraDropError: a preset, a bank or a record does not fit the model; the folder cannot be written, or holds
            other measurements.
    """
    cases = _cases(loaded, pairs[0][0])
    result = {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "data": describe_data(pairs, source),
        "settings": {"context_tokens": context_tokens, "speed_tokens": SPEED_TOKENS},
        "notes": list(dict.fromkeys(note for case in cases for note in case.point.notes)),
        "rows": [],
    }
    there: list[dict[str, Any]] = []
    if (folder / JSON_NAME).exists():
        before = read_presets(folder / JSON_NAME)
        check_same(before, result, (*SAME, "data"), folder, "presets")
        there = before["rows"]
    rows = [next((row for row in there if case.key.items() <= row.items()), None) for case in cases]
    done = len(cases) - rows.count(None)
    progress(done, len(cases))
    for i, case in enumerate(cases):
        if rows[i] is None:
            rows[i] = case.key | measure(loaded, case.point, pairs, context_tokens)
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
            cases.append(Case(preset, check_point(loaded, preset.config.replace(adapters="none"), prompt)))
    return cases


def sample_presets(
    loaded: LoadedModel, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Write what the full model and each preset, with its adapters, answer to `SAMPLE_PROMPTS`.

    A prompt's baseline runs again where a preset's text is missing: the two are compared token by token.

    Args:
        progress: told the texts done and all of them, first with those already there.

    Returns:
        The content of `samples.json`; `samples.md` is the same for reading.

    Raises:
        LoraDropError: see `measure_presets`.
    """
    result = {
        "format": SAMPLES_FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "settings": SAMPLE_SETTINGS,
        "samples": [],
    }
    there = _samples_before(result, folder)
    points = {
        name: check_point(loaded, preset.config, SAMPLE_PROMPTS[0]) for name, preset in presets_for(loaded.id).items()
    }
    wanted = [_sample_key(prompt, lane, points.get(lane)) for prompt in SAMPLE_PROMPTS for lane in (BASELINE, *points)]
    samples = [next((old for old in there if key.items() <= old.items()), None) for key in wanted]
    done = len(samples) - samples.count(None)
    progress(done, len(samples))
    for start in range(0, len(samples), 1 + len(points)):
        base: list[int] | None = None
        for i in range(start, start + 1 + len(points)):
            if samples[i] is not None:
                continue
            if base is None:
                sample, base = _answer(loaded, wanted[start], None, None)
                samples[start] = wanted[start] | sample
            if i != start:
                samples[i] = wanted[i] | _answer(loaded, wanted[i], points[wanted[i]["lane"]], base)[0]
            result["samples"] = [sample for sample in samples if sample]
            # The JSON last: a later call goes on from it.
            write_texts({SAMPLES_MD: samples_text(result), SAMPLES_JSON: json_text(result)}, folder, "the samples")
            done = len(result["samples"])
            progress(done, len(samples))
    result["samples"] = samples
    return result


def _samples_before(result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    path = folder / SAMPLES_JSON
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        samples = [sample for sample in before["samples"] if all(name in sample for name in SAMPLE_KEY)]
    except OSError as error:
        raise LoraDropError(f"cannot read {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LoraDropError(f"{path.name} is not a {SAMPLES_JSON} of the presets command.") from None
    check_same(before, result, SAME, folder, "samples")
    return samples


def _sample_key(prompt: str, lane: str, point: Point | None) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "lane": lane,
        "config": point and point.config.to_dict(),
        "adapters": point and point.adapters,
        "adapters_fingerprint": point and point.fingerprint,
    }


def _answer(
    loaded: LoadedModel, key: dict[str, Any], point: Point | None, base: list[int] | None
) -> tuple[dict[str, Any], list[int]]:
    """The text of a lane on a prompt, and its tokens; without a point it is the baseline's."""
    lane = LORA_DROP if point else BASELINE
    config = {"config": point.config} if point else {}
    trace = gather(run(loaded, Request(key["prompt"], **config, **SAMPLE_SETTINGS, lanes=lane.replace("_", "-"))))
    tokens = trace.token_ids(lane)
    sample = {
        "text": trace.text(lane),
        "tokens": len(tokens),
        "ended": trace.summary.lanes[lane]["ended"],
        "token_ids_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "first_divergence": first_divergence(base, tokens) if base else None,
        "agreement": trace.summary.top1_agreement,
    }
    return sample, tokens


def samples_text(result: dict[str, Any]) -> str:
    """The samples in Markdown, each text in a fence that it cannot close."""
    settings, model = result["settings"], result["model"]
    lines = [
        "# What the presets write",
        "",
        f"Unpicked: every prompt and every preset, greedy, seed {settings['seed']}, at most "
        f"{settings['max_new_tokens']} new tokens, {model['id']} ({model['dtype']}) on {result['device']['name']}.",
        "Agreement: share of LoRA steps at which the full model, reading the same text, would pick the same token.",
        "A text that repeats itself is easy to agree with; how well a preset predicts is in presets.json.",
    ]
    prompt = None
    for sample in result["samples"]:
        if sample["prompt"] != prompt:
            prompt = sample["prompt"]
            lines += ["", f"## {prompt}"]
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", sample["text"])), default=0))
        lines += ["", f"**{_sample_title(sample)}**", "", f"{fence}text", sample["text"], fence]
    return "\n".join(lines) + "\n"


def _sample_title(sample: dict[str, Any]) -> str:
    if sample["lane"] == BASELINE:
        return "full model"
    agreement, differs = sample["agreement"], sample["first_divergence"]
    return (
        f"{sample['lane']}, adapters {sample['adapters']}: "
        f"agreement {'none' if agreement is None else f'{agreement:.1%}'}, "
        f"{'same tokens' if differs is None else f'differs from token {differs + 1} on'}"
    )
