"""The grid over drop ratio, period, rule and part: each point's quality, measured speed, bound and KV.

A sweep is a folder with `sweep.json` (all of it) and `sweep.csv` (its rows), both whole after every point. Called
again with the same model, data, settings and machine it measures what is missing; with others it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import (
    KEY,
    SPEED_TOKENS,
    Point,
    check_point,
    circumstances,
    describe_data,
    describe_prompts,
    key_of,
    measure,
)
from lora_drop.evaluation.measure.prompts import HELD_OUT, SAMPLE_PROMPTS
from lora_drop.evaluation.measure.texts import own_answers
from lora_drop.evaluation.results.store import check_same
from lora_drop.evaluation.results.sweep_file import FORMAT, JSON_NAME, VERSION, read_sweep, write_sweep
from lora_drop.evaluation.samples import sample_trace
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.models.load import LoadedModel
from lora_drop.run.trace.records import BASELINE, LORA_DROP

OWN_PROMPTS = HELD_OUT[:6]  # few: a grid has many points
SAME = ("format", "version", "model", "device", "data", "settings", "software")  # of two sweeps that are one
SAMPLE_PROMPT = SAMPLE_PROMPTS[0]


def grid(
    base: LoraDropConfig,
    ratios: Iterable[float],
    periods: Iterable[int],
    reuses: Iterable[str],
    parts: Iterable[str],
    adapters: Iterable[str],
) -> list[LoraDropConfig]:
    """Every combination, with the other settings of `base`.

    Raises:
        LoraDropError: a value is not allowed.
    """
    ratios, periods, parts, adapters = list(ratios), list(periods), list(parts), list(adapters)
    return [
        base.replace(reuse=reuse, part=part, adapters=bank, drop_ratio=ratio, period=period, drop_layers=None)
        for reuse in reuses
        for part in parts
        for bank in adapters
        for ratio in ratios
        for period in periods
    ]


def in_order(configs: Iterable[LoraDropConfig], order: Sequence[int], num_layers: int) -> list[LoraDropConfig]:
    """The configs with as many layers skipped, but the first of an order in place of evenly spaced ones.

    Raises:
        LoraDropError: the order has too few layers.
    """
    found = []
    for config in configs:
        count = len(config.schedule_for(num_layers).dropped)
        if count > len(order):
            raise LoraDropError(
                f"drop ratio {config.drop_ratio:g} skips {count} layers, but the drop order has {len(order)}: "
                "name more, or take smaller ratios."
            )
        found.append(config.replace(drop_layers=tuple(order[:count])))
    return found


def sweep(
    loaded: LoadedModel,
    configs: Sequence[LoraDropConfig],
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    folder: Path | None = None,
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure every config; two that come to the same (no bank is shipped, so `auto` is `none`) are one point.

    Quality is teacher-forced through the real decode schedule, over `pairs` and over the full model's own answers to a
    few held-out prompts; the point answers these itself too, and the full model reads it. Speed is that of a free run
    on the first prompt, baseline and LoRA-Drop a step each in turn. `sample` is what the point writes.

    Args:
        configs: see `grid`; they differ in the grid's axes only.
        source: where `pairs` come from, for the record: file, fields, limit.
        folder: written after each point; points that it already holds are not measured again.
        progress: called with the points done and all of them, first with those already there.

    Returns:
        The content of `sweep.json`: `{"model", "device", "data", "settings", "software", "date", "notes", "sample",
        "rows"}`; the rows are flat, as in the CSV; `sample` has the prompt of the rows' samples, and what the full
        model writes to it.

    Raises:
        LoraDropError: a setting, a bank or a record does not fit the model; the folder cannot be written, or holds
            another sweep. All but a record too long is reported before anything is measured.
    """
    points = _points(loaded, configs, pairs[0][0])
    result = _begin(loaded, configs, pairs, source, context_tokens)
    if folder is not None and (folder / JSON_NAME).exists():
        before = read_sweep(folder / JSON_NAME)
        check_same(before, result, SAME, folder, "a sweep")
        result |= {name: before[name] for name in ("rows", "notes", "sample") if name in before}
    result["notes"] = list(dict.fromkeys([*result["notes"], *(note for point in points for note in point.notes)]))
    known = {(*key_of(row), row.get("adapters_fingerprint")) for row in result["rows"]}
    missing = [point for point in points if (*point.key, point.fingerprint) not in known]
    there = len(points) - len(missing)
    progress(there, len(points))
    answers = own_answers(loaded, OWN_PROMPTS) if missing else None
    if missing and "sample" not in result:
        result["sample"] = {"prompt": SAMPLE_PROMPT, "text": sample_trace(loaded, SAMPLE_PROMPT).text(BASELINE)}
    for done, point in enumerate(missing, start=there + 1):
        row = measure(loaded, point, pairs, context_tokens, answers, free=True)
        row["sample"] = sample_trace(loaded, SAMPLE_PROMPT, point.config).text(LORA_DROP)
        # A bank trained further under the same name has another fingerprint: its new row takes the old one's place.
        result["rows"] = [old for old in result["rows"] if key_of(old) != point.key] + [row]
        if folder is not None:
            write_sweep(result, folder)
        progress(done, len(points))
    return result


def _begin(
    loaded: LoadedModel,
    configs: Sequence[LoraDropConfig],
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    context_tokens: int | None,
) -> dict[str, Any]:
    """A sweep without rows: where and on what it is measured, and what all its points have in common."""
    base = configs[0]
    return {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "data": describe_data(pairs, source) | {"own": describe_prompts(OWN_PROMPTS)},
        "settings": {
            **{name: value for name, value in base.differences().items() if name not in KEY},
            "layers": list(base.layers or default_range(loaded.num_layers)),
            "context_tokens": context_tokens,
            "speed_tokens": SPEED_TOKENS,
        },
        "notes": [],
        "rows": [],
    }


def _points(loaded: LoadedModel, configs: Sequence[LoraDropConfig], prompt: str) -> list[Point]:
    """The configs checked against the model; two that come to the same are one."""
    points: dict[tuple, Point] = {}
    for config in configs:
        point = check_point(loaded, config, prompt)
        if points.setdefault(point.key, point).fingerprint != point.fingerprint:
            raise LoraDropError(f"two different adapter folders are called {point.adapters}: rename one of them.")
    return list(points.values())
