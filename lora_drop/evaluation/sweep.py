"""Measure a grid over drop ratio, period, rule, part and adapters: quality, speed, bound and K/V of each point.

A sweep is a folder with `sweep.json`, all of it, and `sweep.csv`, its rows. The rows also hold a text that each point
writes. While a point is measured, `scores.jsonl` holds the scores of its texts: a stopped sweep goes on with the next.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import Memo
from lora_drop.evaluation.measure.point import (
    SPEED_TOKENS,
    Point,
    check_point,
    circumstances,
    describe_data,
    describe_prompts,
    measure,
    sha256_of,
    within,
)
from lora_drop.evaluation.measure.texts import own_answers
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.kinds import LayerList, Layers
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import Request
from lora_drop.run.results.files import CSV_NAME, SWEEP
from lora_drop.run.results.prompts import HELD_OUT, SAMPLE_PROMPTS
from lora_drop.run.results.store import SAME, Content, Lines, Row, Shape, Store, whole_setting
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import Trace, gather

SCORES = "scores.jsonl"
OWN_PROMPTS = HELD_OUT[:6]  # few: a grid has many points
SAMPLE_PROMPT = SAMPLE_PROMPTS[0]
SAMPLE_SETTINGS: dict[str, Any] = {"max_new_tokens": 96, "temperature": 0.0, "seed": 0}
AXES = (
    *("reuse", "part", "adapters", "refresh", "kv", "accept", "own_repeats", "head", "corrections"),
    *("drop_ratio", "period", "drop_layers"),
)
_LISTS = {
    setting.name: setting.kind for setting in settings_of(SCHEDULE) if isinstance(setting.kind, (Layers, LayerList))
}


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
    return [
        base.replace(reuse=reuse, part=part, adapters=bank, drop_ratio=ratio, period=period, drop_layers=None)
        for reuse, part, bank, ratio, period in itertools.product(reuses, parts, adapters, ratios, periods)
    ]


def in_order(configs: Iterable[LoraDropConfig], order: Sequence[int], num_layers: int) -> list[LoraDropConfig]:
    """The configs with as many layers skipped, but the first of an order in place of evenly spaced ones.

    Raises:
        LoraDropError: the order has too few layers.
    """
    ordered = []
    for config in configs:
        count = len(config.schedule_for(num_layers).dropped)
        if count > len(order):
            raise LoraDropError(
                f"drop ratio {config.drop_ratio:g} skips {count} layers, but the drop order has {len(order)}: "
                "name more, or take smaller ratios."
            )
        ordered.append(config.replace(drop_layers=tuple(order[:count])))
    return ordered


def check_grid(loaded: LoadedModel, configs: Sequence[LoraDropConfig], prompt: str) -> list[Point]:
    """Check configs against the model; two that come to the same (`auto` without a bank is `none`) are one point.

    Raises:
        LoraDropError: a setting or a bank does not fit the model, or two banks have one name.
    """
    points: dict[tuple[Any, ...], Point] = {}
    for config in configs:
        point = check_point(loaded, config, prompt)
        if points.setdefault(key_of(point.setting), point).fingerprint != point.fingerprint:
            raise LoraDropError(f"two different adapter folders are called {point.adapters}: rename one of them.")
    return list(points.values())


def key_of(row: Row) -> tuple[Any, ...]:
    """What identifies a row within a sweep: its `AXES`, those that an older file does not name at their defaults."""
    values = (whole_setting(row)[name] for name in AXES)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def with_row(rows: Iterable[Row], row: Row) -> list[Row]:
    """The rows with one more at the end, in place of an older one of the same key."""
    return [*(old for old in rows if key_of(old) != key_of(row)), row]


def sweep(
    loaded: LoadedModel,
    configs: Sequence[LoraDropConfig],
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    folder: Path,
    context_tokens: int | None = None,
    progress: Callable[[float, int], None] = lambda done, total: None,
    answered: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """Measure every point that the folder does not hold yet, and write the files after each.

    Quality is teacher-forced through the real decode schedule, over `pairs` and over the full model's own answers to a
    few held-out prompts. Each point also answers these itself, and the full model reads its answers. Speed is that of
    a free run on the first prompt, baseline and LoRA-Drop a step each in turn.

    Args:
        configs: see `grid`; they differ in `AXES` only.
        source: where `pairs` come from, for the record: file, fields, limit.
        progress: called with the points done and all of them, first with those already there; within a point with a
            fraction.
        answered: called with the full model's answers and all of them.

    Returns:
        The content of `sweep.json`. Its rows are flat, as in the CSV; its `sample` has the prompt of the rows' samples
        and the full model's answer to it.

    Raises:
        LoraDropError: a setting, a bank or a record does not fit the model; the folder cannot be written, or holds
            another sweep. All but a record too long is reported before anything is measured.
    """
    points = check_grid(loaded, configs, pairs[0][0])
    store = Store(SWEEP, folder, _content(loaded, configs[0], pairs, source, context_tokens), _table)
    content = store.content
    content["notes"] = list(dict.fromkeys([*content.get("notes", []), *(note for p in points for note in p.notes)]))
    # A bank trained further under the same name has another fingerprint: its points are measured again.
    measured = {(key_of(row), row.get("adapters_fingerprint")) for row in store.rows}
    missing = [point for point in points if (key_of(point.setting), point.fingerprint) not in measured]
    progress(len(points) - len(missing), len(points))
    if not missing:
        return content
    answers = own_answers(loaded, OWN_PROMPTS, None, lambda count: answered(count, len(OWN_PROMPTS)))
    same = [answers.sha256, *(content.get(name) for name in SAME)]
    if "sample" not in content:
        content["sample"] = {"prompt": SAMPLE_PROMPT, "text": sample_trace(loaded, SAMPLE_PROMPT).text(BASELINE)}
    for done, point in enumerate(missing, start=len(points) - len(missing)):
        key = sha256_of([*same, key_of(point.setting), point.fingerprint])
        row = measure(
            *(loaded, point, pairs, context_tokens, answers, True),
            progress=within(progress, done, len(points)),
            memo=partial(_memo, Lines(folder / SCORES, _Scores), key),
        )
        row["sample"] = sample_trace(loaded, SAMPLE_PROMPT, point.config).text(LORA_DROP)
        store.write(with_row(store.rows, row))
        (folder / SCORES).unlink(missing_ok=True)
        progress(done + 1, len(points))
    return content


class _Scores(Shape):
    text: list[str | int]
    scores: dict[str, Any]


def _memo(file: Lines, *about: str) -> Memo:
    """The scores of texts: those in a file, and those that are computed, which are appended to it.

    Args:
        about: a hash of all that the scores depend on, and the kind of the texts.
    """

    def memo(number: int, compute: Callable[[], Row]) -> Row:
        text = [*about, number]
        if (before := next((row for row in file.records if row["text"] == text), None)) is None:
            before = {"text": text, "scores": compute()}
            file.append(before)
        scores: Row = before["scores"]
        return scores

    return memo


def sample_trace(loaded: LoadedModel, prompt: str, config: LoraDropConfig | None = None) -> Trace:
    """The run of a sample: a config's, or the full model's."""
    lanes = "lora-drop" if config else "baseline"
    return gather(run(loaded, Request(prompt, config or LoraDropConfig(), **SAMPLE_SETTINGS, lanes=lanes)))


def _content(
    loaded: LoadedModel,
    base: LoraDropConfig,
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    context_tokens: int | None,
) -> Content:
    """A sweep without rows: where and on what it is measured, and what all its points have in common."""
    return SWEEP.begin(
        circumstances(loaded),
        data=describe_data(pairs, source) | {"own": describe_prompts(OWN_PROMPTS)},
        settings={
            **{name: value for name, value in base.differences().items() if name not in AXES},
            "layers": list(base.layers or default_range(loaded.num_layers)),
            "context_tokens": context_tokens,
            "speed_tokens": SPEED_TOKENS,
        },
        notes=[],
    )


def _table(content: Content) -> dict[str, str]:
    """The rows as CSV, without their samples."""
    table, columns = io.StringIO(), dict.fromkeys(name for row in content["rows"] for name in row)
    columns.pop("sample", None)  # a text of many lines
    # A row may be older than a setting.
    writer = csv.DictWriter(table, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in content["rows"]:
        writer.writerow({name: _LISTS[name].write(cell) if name in _LISTS else cell for name, cell in row.items()})
    return {CSV_NAME: table.getvalue()}
