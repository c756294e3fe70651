"""Measure methods beside the full model: `compare.json`, from which the frontier of methods is drawn.

Each method is a lane beside the full model's, measured by `protocol.py`. A method with parameters is measured with
several values of them. If it is lossless, the fastest values are searched for, on other prompts than those reported,
and only they are reported; else all values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lora_drop.adapters.find import base_of
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.measure.point import circumstances, describe_prompts
from lora_drop.evaluation.measure.protocol import COUNTS, measure_lanes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.methods import CONFIGURED, FULL, METHODS, lanes_of, method_lane
from lora_drop.models.load import LoadedModel
from lora_drop.run.exports.figures.methods import PICTURE, frontier_picture
from lora_drop.run.request import LanePlan, Request, plan
from lora_drop.run.results.files import COMPARE
from lora_drop.run.results.store import Content, Row, Store
from lora_drop.run.trace.records import BASELINE

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
        searched_on: those that the search for a lossless method's fastest values runs on.
        tokens: most new tokens of an answer.
        progress: called with the prompts done and all of them, of the search and then of the others.

    Raises:
        LoraDropError: a method does not fit the model; the folder cannot be written, or holds other measurements.
    """
    chosen = {name: _candidates(loaded, name) for name in methods}
    # Reports mistakes before anything is measured.
    lanes = {name: _lane(loaded, name, prompts.texts[0], tokens) for names in chosen.values() for name in names}
    content = COMPARE.begin(
        circumstances(loaded),
        data=prompts.about | {"searched_on": describe_prompts(searched_on)},
        settings={"tokens": tokens},
    )
    store = Store(COMPARE, folder, content, lambda content: {PICTURE: frontier_picture(content)})
    store.write()

    def measured(names: Iterable[str], on: PromptSet, is_search: bool) -> dict[str, Row]:
        """The rows of methods by name; those that are missing are measured together."""
        rows = [row for row in store.rows if row["is_search"] == is_search and "refused" not in row]
        there = {row["method"] for row in rows}
        keys = {("search " if is_search else "") + name: name for name in names if name not in there}
        missing = {key: lanes[name] for key, name in keys.items()}
        for key, row in measure_lanes(loaded, missing, on, folder, rows, tokens, progress).items():
            rows.append({"method": keys[key], "is_search": is_search} | row)
        store.write([*rows, *(row for row in store.rows if row["is_search"] != is_search)])
        (folder / COUNTS).unlink(missing_ok=True)
        return {row["method"]: row for row in rows}

    searched = [name for name, names in chosen.items() if len(names) > 1 and METHODS[name].is_lossless]
    if searched:
        choice = PromptSet(tuple(searched_on), ("",) * len(searched_on), {})
        rows = measured([name for method in searched for name in chosen[method]], choice, is_search=True)
        for method in searched:
            chosen[method] = [max(chosen[method], key=lambda name: rows[name]["speedup"] or 0)]
    measured([name for names in chosen.values() for name in names], prompts, is_search=False)
    return store.content


def _candidates(loaded: LoadedModel, name: str) -> list[str]:
    """Names of the lanes to measure for a method: its name with each choice of values for its parameters."""
    lanes_of(name)  # reports a method that is not in the table
    values: list[tuple[int, ...]] = [()] if ":" in name else METHODS[name].searched(loaded.num_layers)
    texts = [":".join([name, *map(str, parameters)]) for parameters in values]
    base = base_of(loaded)
    return [method_lane(text, loaded.num_layers, base).name for text in texts]


def _lane(loaded: LoadedModel, name: str, prompt: str, tokens: int) -> LanePlan:
    request = Request(prompt, LoraDropConfig(), tokens, audit=False, lanes=f"{FULL},{name}")
    return next(lane for plan_id, lane in plan(loaded, request).lanes.items() if plan_id != BASELINE)
