"""Measure methods beside the full model: `compare.json`, from which the frontier of methods is drawn.

Each method is a lane beside the full model's, timed alike. A method with parameters is measured with several values of
them. If it is lossless, the fastest values are searched for, on other prompts than those reported, and only they are
reported; else all values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_drop.adapters.find import base_of
from lora_drop.evaluation.measure.bench import beside, paired_speedup, rate_of
from lora_drop.evaluation.measure.metrics import read_target, regrets
from lora_drop.evaluation.measure.point import circumstances, describe_prompts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.interval import ratio_interval
from lora_drop.method.methods import CONFIGURED, FULL, METHODS, lanes_of, method_lane
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.exports.figures.methods import PICTURE, frontier_picture
from lora_drop.run.report.report import Report
from lora_drop.run.request import Request, plan
from lora_drop.run.results.files import COMPARE
from lora_drop.run.results.store import Content, Row, Store
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE
from lora_drop.run.trace.trace import gather

ALL = tuple(name for name in METHODS if name not in (FULL, CONFIGURED))


def compare_methods(
    loaded: LoadedModel,
    methods: Iterable[str],
    prompts: Sequence[str],
    searched_on: Sequence[str],
    source: dict[str, Any],
    folder: Path,
    tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """Measure every method that the folder has no row of, and write the files after each.

    Args:
        methods: as `lanes_of` takes them; without its parameters' values, a method is measured with several.
        prompts: those whose figures are reported.
        searched_on: those that the search for a lossless method's fastest values runs on.
        source: where the prompts come from, for the record.
        tokens: most new tokens of an answer.
        progress: called with the rows done and all of them, those of the search included.

    Raises:
        LoraDropError: a method does not fit the model; the folder cannot be written, or holds other measurements.
    """
    chosen = {name: _candidates(loaded, name) for name in methods}
    for name in {name for names in chosen.values() for name in names}:
        plan(loaded, _request(name, prompts[0], tokens))  # reports its mistakes before anything is measured
    content = COMPARE.begin(
        circumstances(loaded),
        data=source | describe_prompts(prompts) | {"searched_on": describe_prompts(searched_on)},
        settings={"tokens": tokens},
    )
    searched = [name for name, names in chosen.items() if len(names) > 1 and METHODS[name].is_lossless]
    total = sum(map(len, chosen.values())) + len(searched)
    store = Store(COMPARE, folder, content, lambda content: {PICTURE: frontier_picture(content)})

    def measured(names: Sequence[str], is_search: bool) -> list[Row]:
        rows = []
        for name in names:
            key = {"method": name, "is_search": is_search}
            row = next((row for row in store.rows if key.items() <= row.items()), None)
            if row is None:
                row = key | measure_method(loaded, name, searched_on if is_search else prompts, tokens)
                store.write([*store.rows, row])
            rows.append(row)
            progress(len(store.rows), total)
        return rows

    for name in searched:
        best = max(measured(chosen[name], is_search=True), key=lambda row: row["speedup"] or 0)
        chosen[name] = [best["method"]]
    for names in chosen.values():
        measured(names, is_search=False)
    store.write()  # draws the picture anew even if no row was missing
    return store.content


def _candidates(loaded: LoadedModel, name: str) -> list[str]:
    """Names of the lanes to measure for a method: its name with each choice of values for its parameters."""
    lanes_of(name)  # reports a method that is not in the table
    values: list[tuple[int, ...]] = [()] if ":" in name else METHODS[name].searched(loaded.num_layers)
    texts = [":".join([name, *map(str, parameters)]) for parameters in values]
    base = base_of(loaded)
    return [method_lane(text, loaded.num_layers, base).name for text in texts]


def _request(name: str, prompt: str, tokens: int) -> Request:
    return Request(prompt, LoraDropConfig(), tokens, view="lock-step", audit=False, lanes=f"{FULL},{name}")


def measure_method(loaded: LoadedModel, name: str, prompts: Sequence[str], tokens: int) -> Row:
    """A method's figures over its answers to some prompts, greedy to their stop tokens.

    Returns:
        `speedup` with its interval `speedup_low` to `speedup_high`, `bound`,
        tokens per second of both lanes, `layer_runs` and `bytes` a token, the share `accepted` of drafts, `kv_saved`;
        `regret` in nats per token with its interval, how many answers are the full model's (`same_texts`), `texts`.
    """
    runs = [Report.of(gather(run(loaded, _request(name, prompt, tokens)))) for prompt in prompts]
    lane = next(lane for lane in runs[0].lanes if lane != BASELINE)
    figures = beside(runs, lane)
    low, high = figures.pop("speedup_interval") or (None, None)
    if low is not None:  # a method's answer may end early: compare what ran at the same time, as the interval does
        figures["speedup"] = paired_speedup(runs, lane)
    losses = [
        _regret(loaded, prompt, report.trace.token_ids(lane)) for prompt, report in zip(prompts, runs, strict=True)
    ]
    regret_low, regret_high = ratio_interval(losses) or (None, None)
    lanes = [report.lanes[lane] for report in runs]
    standing = sum(lane_report.standing for lane_report in lanes)
    return {
        **{"speedup_low": low, "speedup_high": high, **figures},
        "tokens_per_second": rate_of(runs, lane),
        "baseline_tokens_per_second": rate_of(runs, BASELINE),
        "layer_runs": sum((lane_report.layer_runs or 0) * lane_report.standing for lane_report in lanes) / standing,
        "bytes": sum((lane_report.bytes_per_token or 0) * lane_report.standing for lane_report in lanes) / standing,
        "kv_saved": sum(report.kv_saved(lane) or 0 for report in runs) / len(runs),
        "regret": sum(loss for loss, _ in losses) / sum(count for _, count in losses),
        **{"regret_low": regret_low, "regret_high": regret_high},
        "same_texts": sum(report.first_difference(lane) is None for report in runs),
        "texts": len(runs),
        "decoder": runs[0].trace.header.device.get("decoder"),
    }


@torch.inference_mode()
def _regret(loaded: LoadedModel, prompt: str, tokens: list[int]) -> tuple[float, float]:
    """Summed regret of an answer's tokens, and their number."""
    logits = read_target(loaded.new_decoder(), encode_prompt(loaded.tokenizer, prompt), tokens)
    return float(regrets(logits, torch.tensor(tokens, device=loaded.device)).sum()), float(len(tokens))
