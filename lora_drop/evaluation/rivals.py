"""Measure methods beside the full model: `compare.json`, from which the frontier of methods is drawn.

Each method is a lane beside the full model's, measured by `protocol.py`. A method with parameters is measured with
several values of them. If the full model verifies its drafts, the fastest values are searched for, on other prompts
than those reported: all are counted, the `TIMED` best by counts are timed, and the fastest is reported, beside the
values that its source uses. Of other methods all values are reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_drop.adapters.bank import AdapterBank
from lora_drop.evaluation.measure.bench import one_more_row, rows_cost, time_lanes
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.measure.point import circumstances, describe_prompts
from lora_drop.evaluation.measure.protocol import COUNTS, measure_lanes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import weight_cost
from lora_drop.method.methods import CONFIGURED, FULL, METHODS, lanes_of, method_lane
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.exports.figures.methods import PICTURE, frontier_picture
from lora_drop.run.report.report import LaneReport
from lora_drop.run.request import LanePlan, Request, plan
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.files import COMPARE
from lora_drop.run.results.store import Content, Row, Store
from lora_drop.run.trace.records import BASELINE

TIMED = 5  # settings of a search, the best by counts
COUNTED_PROMPTS = 4  # of a search, whose passes are counted
COUNTED_TOKENS = 48  # new tokens of an answer whose passes are counted; all with prompt lookup, as texts repeat late
ALL = tuple(name for name in METHODS if name not in (FULL, CONFIGURED))


def compare_methods(
    loaded: LoadedModel,
    methods: Iterable[str],
    prompts: PromptSet,
    searched_on: Sequence[str],
    folder: Path,
    tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """Measure every method that the folder has no row of: those of the search together, then all others.

    Args:
        methods: as `lanes_of` takes them; without its parameters' values, a method is measured with several.
        prompts: those whose figures are reported.
        searched_on: those that the search for the fastest values of a method that drafts runs on.
        tokens: most new tokens of an answer.
        progress: called with the prompts done and all of them, of the search and then of the others.

    Raises:
        LoraDropError: a method does not fit the model; the folder cannot be written, or holds other measurements.
    """
    chosen = {name: _candidates(loaded, name) for name in methods}
    banks: dict[tuple[Any, ...], AdapterBank | None] = {}
    make = partial(_lane, loaded, prompt=prompts.texts[0], tokens=tokens, banks=banks)
    # Reports mistakes before anything is measured.
    lanes = {name: make(name) for names in chosen.values() for name in names}
    for method, names in chosen.items():  # without a screened head its values are those of the full head again
        chosen[method] = [name for name in names if lanes[name].bank or lanes[name].schedule.head == "full"] or names
    content = COMPARE.begin(
        circumstances(loaded),
        data=prompts.about | {"searched_on": describe_prompts(searched_on)},
        settings={"tokens": tokens},
        searches={},
    )
    store = Store(COMPARE, folder, content, lambda content: {PICTURE: frontier_picture(content)})
    store.write()

    def measured(names: Iterable[str], on: PromptSet, is_search: bool) -> dict[str, Row]:
        """The rows of methods by name; those that are missing are measured together."""
        rows = [row for row in store.rows if row["is_search"] == is_search and "refused" not in row]
        there = {row["method"] for row in rows}
        keys = {("search " if is_search else "") + name: name for name in names if name not in there}
        missing = {key: lanes[name] for key, name in keys.items()}
        if not missing:  # and what `COUNTS` holds is of other rows
            return {row["method"]: row for row in rows}
        for key, row in measure_lanes(loaded, missing, on, folder, rows, tokens, progress).items():
            rows.append({"method": keys[key], "is_search": is_search} | row)
        store.write([*rows, *(row for row in store.rows if row["is_search"] != is_search)])
        (folder / COUNTS).unlink(missing_ok=True)
        return {row["method"]: row for row in rows}

    searched = [name for name, names in chosen.items() if len(names) > 1 and lanes[names[0]].schedule.verifies]
    for method in searched:
        if method not in content["searches"]:
            settings = {name: lanes[name] for name in chosen[method]}
            length = tokens if lanes[chosen[method][0]].schedule.lookup else min(tokens, COUNTED_TOKENS)
            tried = by_counts(loaded, settings, searched_on[:COUNTED_PROMPTS], length, progress)
            content["searches"][method] = tried
            store.write()
    if searched:
        choice = PromptSet(tuple(searched_on), ("",) * len(searched_on), {})
        best = {method: _best(content["searches"][method]) for method in searched}
        rows = measured([name for names in best.values() for name in names], choice, is_search=True)
        for method, names in best.items():
            fastest = max(names, key=lambda name: rows[name]["speedup"] or 0)
            chosen[method] = list(dict.fromkeys([fastest, *_published(loaded, method)]))
            lanes |= {name: make(name) for name in chosen[method]}
    measured([name for names in chosen.values() for name in names], prompts, is_search=False)
    return store.content


def by_counts(
    loaded: LoadedModel,
    lanes: Mapping[str, LanePlan],
    prompts: Sequence[str],
    tokens: int,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """Settings of a method with the speed that the passes they need promise: no clock of theirs decides.

    A LoRA step costs its share of a full step's weights, a full pass what as many rows cost in a short measurement.

    Args:
        tokens: most new tokens of an answer.

    Returns:
        `method`, the `speedup` by counts and the share `accepted` of the drafts of each, the best first.
    """
    texts = [encode_prompt(loaded.tokenizer, text) for text in prompts]
    costs = rows_cost(loaded, LoraDropConfig(), texts[0])
    more = {rows: max(0.0, one_more_row(costs[str(rows)], rows) or 0.0) for rows in (4, 8)}
    full = weight_cost(loaded.shape, baseline_schedule(loaded.num_layers), lora=False)
    counts = {name: [0.0] * 4 for name in lanes}  # tokens, their cost in full steps, drafts, accepted ones
    for number, ids in enumerate(texts):
        progress(number, len(texts))
        plans = {f"lane_{i}": lane for i, lane in enumerate(lanes.values())}
        report = time_lanes(loaded, plans, ids, tokens, ignore_eos=False)
        for name, lane, ours in zip(lanes, plans.values(), report.lanes.values(), strict=True):
            lora = weight_cost(loaded.shape, lane.schedule, True, lane.corrections(loaded.shape)) / full
            values = ours.standing, _cost(ours, lora, more), ours.drafts, ours.accepted
            counts[name] = [total + value for total, value in zip(counts[name], values, strict=True)]
    rows = [
        {"method": name, "speedup": standing / (cost or 1), "accepted": accepted / drafts if drafts else None}
        for name, (standing, cost, drafts, accepted) in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["speedup"])


def _cost(lane: LaneReport, lora: float, more: Mapping[int, float]) -> float:
    """What a lane's passes cost, in full steps of one row.

    Args:
        lora: of a LoRA step.
        more: of one more row in a full pass, by the rows of the pass that it was measured with.
    """
    full = sum(1 + (record.rows - 1) * more[4 if record.rows <= 4 else 8] for record in lane.full)
    return full + lora * sum(step.kind == "lora" for step in [*lane.steps, *lane.rejected])


def _best(tried: Sequence[Row]) -> list[str]:
    """The settings to time: the `TIMED` best of those that `by_counts` tells apart."""
    apart = {row["speedup"]: row["method"] for row in reversed(tried)}
    return [*apart.values()][::-1][:TIMED]


def _published(loaded: LoadedModel, name: str) -> list[str]:
    """The name of a method's lane with the values of its source; none if it has none."""
    published, layers = METHODS[name].published, loaded.num_layers
    if published is None:
        return []
    return [method_lane(":".join([name, *map(str, published(layers))]), layers, presets_of(loaded)).name]


def _candidates(loaded: LoadedModel, name: str) -> list[str]:
    """Names of the lanes to measure for a method: its name with each choice of values for its parameters."""
    lanes_of(name)  # reports a method that is not in the table
    values: list[tuple[int, ...]] = [()] if ":" in name else METHODS[name].searched(loaded.num_layers)
    texts = [":".join([name, *map(str, parameters)]) for parameters in values]
    presets = presets_of(loaded)
    return [method_lane(text, loaded.num_layers, presets).name for text in texts]


def _lane(
    loaded: LoadedModel, name: str, prompt: str, tokens: int, banks: dict[tuple[Any, ...], AdapterBank | None]
) -> LanePlan:
    """The lane of a method by its name; `banks` are those that lanes share, by the settings that choose them."""
    request = Request(prompt, LoraDropConfig(), tokens, audit=False, lanes=f"{FULL},{name}")
    lane = next(lane for plan_id, lane in plan(loaded, request).lanes.items() if plan_id != BASELINE)
    settings = ("adapters", "reuse", "part", "refresh", "kv", "corrections", "head")
    key = tuple(getattr(lane.config, setting) for setting in settings)
    return dataclasses.replace(lane, bank=banks.setdefault(key, lane.bank))
