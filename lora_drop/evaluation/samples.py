"""Texts that the presets write, beside the full model's.

They are unpicked: all of `SAMPLE_PROMPTS`, greedy, for the full model and for each preset. `samples.json` and
`samples.md`, the same for reading, are whole after each text: called again, what is missing is written, and what a
changed preset or bank makes out of date, anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import Point, check_point, circumstances
from lora_drop.evaluation.measure.prompts import SAMPLE_PROMPTS
from lora_drop.evaluation.results.store import check_same, json_text, whole_setting, write_texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import presets_for
from lora_drop.method.settings import Lanes
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import BASELINE, LORA_DROP, Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import Trace, first_divergence, gather

FORMAT, VERSION = "lora-drop-samples", 1
JSON_NAME, MD_NAME = "samples.json", "samples.md"
SETTINGS: dict[str, Any] = {"max_new_tokens": 96, "temperature": 0.0, "seed": 0}
SAME = ("format", "version", "model", "device", "settings", "software")  # of two files that are one
KEY = ("prompt", "lane", "config", "adapters_fingerprint")  # identifies a sample


def sample_presets(
    loaded: LoadedModel, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Write what the full model and each preset, with its adapters, answer to `SAMPLE_PROMPTS`.

    A prompt's baseline runs again where a preset's text is missing: the two are compared token by token.

    Args:
        progress: called with the texts done and all of them, first with those already there.

    Returns:
        The content of `samples.json`; `samples.md` is the same for reading.

    Raises:
        LoraDropError: see `measure_presets`.
    """
    result = {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "settings": SETTINGS,
        "samples": [],
    }
    there = _before(result, folder)
    points = {
        name: check_point(loaded, preset.config, SAMPLE_PROMPTS[0]) for name, preset in presets_for(loaded.id).items()
    }
    wanted = [_key(prompt, lane, points.get(lane)) for prompt in SAMPLE_PROMPTS for lane in (BASELINE, *points)]
    samples = [next((old for old in there if _is_of(old, key)), None) for key in wanted]
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
            write_texts({MD_NAME: samples_text(result), JSON_NAME: json_text(result)}, folder, "the samples")
            done = len(result["samples"])
            progress(done, len(samples))
    result["samples"] = samples
    return result


def _before(result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    path = folder / JSON_NAME
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        samples = [sample for sample in before["samples"] if all(name in sample for name in KEY)]
        if not all(isinstance(sample["config"], (dict, type(None))) for sample in samples):
            raise ValueError
    except OSError as error:
        raise LoraDropError(f"cannot read {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LoraDropError(f"{path.name} is not a {JSON_NAME} of the presets command.") from None
    check_same(before, result, SAME, folder, "samples")
    return samples


def _key(prompt: str, lane: str, point: Point | None) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "lane": lane,
        "config": point and point.config.differences(),
        "adapters": point and point.adapters,
        "adapters_fingerprint": point and point.fingerprint,
    }


def _is_of(sample: dict[str, Any], key: dict[str, Any]) -> bool:
    """Whether a stored sample is what a key names."""
    stored, config = sample["config"], key["config"]
    same_config = stored == config if None in (stored, config) else whole_setting(stored) == whole_setting(config)
    return same_config and all(sample[name] == key[name] for name in KEY if name != "config")


def sample_trace(loaded: LoadedModel, prompt: str, config: LoraDropConfig | None = None) -> Trace:
    """The run of a sample: the full model's, or that of a config."""
    lanes: Lanes = "lora-drop" if config else "baseline"
    return gather(run(loaded, Request(prompt, config or LoraDropConfig(), **SETTINGS, lanes=lanes)))


def _answer(
    loaded: LoadedModel, key: dict[str, Any], point: Point | None, base: list[int] | None
) -> tuple[dict[str, Any], list[int]]:
    """The text of a lane on a prompt, and its tokens; without a point it is the baseline's."""
    lane = LORA_DROP if point else BASELINE
    trace = sample_trace(loaded, key["prompt"], point.config if point else None)
    tokens, summary = trace.token_ids(lane), trace.summary
    assert summary is not None  # it ran to its end
    sample = {
        "text": trace.text(lane),
        "tokens": len(tokens),
        "ended": summary.lanes[lane]["ended"],
        "token_ids_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "first_divergence": first_divergence(base, tokens) if base else None,
        "collapsed": summary.lanes[lane]["collapsed"],
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
        "What the presets lose is in presets.json.",
    ]
    prompt = None
    for sample in result["samples"]:
        if sample["prompt"] != prompt:
            prompt = sample["prompt"]
            lines += ["", f"## {prompt}"]
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", sample["text"])), default=0))
        lines += ["", f"**{_title(sample)}**", "", f"{fence}text", sample["text"], fence]
    return "\n".join(lines) + "\n"


def _title(sample: dict[str, Any]) -> str:
    loop, differs = sample.get("collapsed"), sample["first_divergence"]
    circles = "" if loop is None else f", goes in circles from token {loop + 1} on"
    if sample["lane"] == BASELINE:
        return f"full model{circles}"
    difference = "same tokens" if differs is None else f"differs from token {differs + 1} on"
    return f"{sample['lane']}, adapters {sample['adapters']}: {difference}{circles}"
