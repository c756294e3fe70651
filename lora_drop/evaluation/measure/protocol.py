"""One protocol for every speed that is written down.

All methods answer the same prompts in one process, greedy to their stop tokens, a step each in turn beside the full
model; the first steps, a warm-up, are left out. A prompt's counts and times are written when it is answered, so a
measurement that was stopped goes on with the next prompt. Each figure is of what a method and the full model did at
the same time (`speed.paired`), over all prompts, by kind of prompt, and by how much the full model's answer repeats:
where it goes in circles, drafts that copy earlier text are accepted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_drop.evaluation.measure.bench import counted, rotated, speed_figures, time_lanes
from lora_drop.evaluation.measure.metrics import read_target, regrets
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.measure.texts import ANSWER_TOKENS, without_end
from lora_drop.method.interval import ratio_interval
from lora_drop.method.quality import REPETITION, repeated_share, repetition
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import quotient
from lora_drop.run.request import LanePlan, baseline_lane
from lora_drop.run.results.store import Lines, Row, Shape
from lora_drop.run.trace.records import BASELINE

COUNTS = "speeds.jsonl"  # counts and times by method and prompt, while a measurement is under way
WARM_UP_TOKENS = 9
OFF = 0.1  # a row whose full model ran so much faster or slower than the others' cannot be compared with them
TRIES = 3


class _Counts(Shape):
    lane: str
    prompt: int


def measure_lanes(
    loaded: LoadedModel,
    lanes: Mapping[str, LanePlan],
    prompts: PromptSet,
    folder: Path,
    others: Iterable[Row] = (),
    tokens: int = ANSWER_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Row]:
    """Measure methods on the same prompts, each beside the full model.

    A method beside which the full model ran `OFF` faster or slower than beside the others is measured `TRIES` times,
    and then has no speed.

    Args:
        lanes: by a name that stands for the method, its setting and its adapters.
        folder: gets `COUNTS`; what it already holds of these methods is not measured again.
        others: rows of methods that were measured before, with which these are compared.
        tokens: most new tokens of an answer.
        progress: called with the prompts done and all of them.

    Returns:
        A row a method, see `figures`. One that is refused has no speedup, and `refused` says why.

    Raises:
        LoraDropError: a prompt does not fit the model's context, there is no memory for the lanes, or the folder
            cannot be written.
    """
    file, numbers = Lines(folder / COUNTS, _Counts), range(len(prompts.texts))
    before = [rate for row in others if (rate := row.get("baseline_tokens_per_second"))]
    done = {(row["lane"], row["prompt"]) for row in file.records}
    missing = {i: [name for name in lanes if (name, i) not in done] for i in numbers}
    rows: dict[str, Row] = {}
    for _ in range(TRIES):
        _answer(loaded, lanes, prompts, missing, tokens, file, progress)
        counts = {(row["lane"], row["prompt"]): row for row in file.records}  # the last of each
        rows = {name: figures([counts[name, i] for i in numbers], prompts.kinds) for name in lanes}
        rates = {name: rate for name, row in rows.items() if (rate := row["baseline_tokens_per_second"])}
        usual = statistics.median([*rates.values(), *before]) if rates else 0.0
        off = [name for name, rate in rates.items() if abs(rate / usual - 1) > OFF]
        if not off:
            return rows
        missing = dict.fromkeys(numbers, off)
    for name in off:
        rows[name] |= dict.fromkeys(("speedup", "speedup_low", "speedup_high")) | {
            "refused": f"{lanes[name].label}: the full model ran at {rates[name]:.0f} tokens/s beside it and at "
            f"{usual:.0f} beside the others, {TRIES} times. Leave the machine idle and run the same command again."
        }
    return rows


def _answer(
    loaded: LoadedModel,
    lanes: Mapping[str, LanePlan],
    prompts: PromptSet,
    missing: Mapping[int, Sequence[str]],
    tokens: int,
    file: Lines,
    progress: Callable[[int, int], None],
) -> None:
    """Answer each prompt with the full model and the missing methods, and write their counts."""
    base = {BASELINE: baseline_lane(loaded.num_layers)}
    is_warm = False
    for number, names in missing.items():
        progress(number, len(missing))
        if not names:
            continue
        ids = encode_prompt(loaded.tokenizer, prompts.texts[number])
        timed = base | {f"lane_{i}": lanes[name] for i, name in enumerate(names)}
        if not is_warm:
            time_lanes(loaded, timed, ids, WARM_UP_TOKENS, ignore_eos=False)
            is_warm = True
        report = time_lanes(loaded, rotated(timed, number), ids, tokens, ignore_eos=False)
        for i, name in enumerate(names):
            file.append({"lane": name, "prompt": number, **_counts(loaded, report, f"lane_{i}", ids)})
    progress(len(missing), len(missing))


@torch.inference_mode()
def _counts(loaded: LoadedModel, report: Report, lane: str, prompt_ids: list[int]) -> Row:
    """Counts, times and losses of a lane's answer to a prompt."""
    base, ours = report.lanes[BASELINE], report.lanes[lane]
    is_same = report.first_difference(lane) is None
    ids = report.trace.token_ids(lane)
    losses = torch.zeros(len(ids))  # no token of the full model's text is less likely than its favourite
    if not is_same:
        logits = read_target(loaded.new_decoder(), prompt_ids, ids)
        losses = regrets(logits, torch.tensor(ids, device=loaded.device))
    return {
        **counted(report, lane),
        "tokens": [ours.standing, base.standing],
        "ms": [ours.decode_ms, base.decode_ms],
        "layer_runs": (ours.layer_runs or 0) * ours.standing,
        "layer_rows": (ours.layer_rows or 0) * ours.standing,
        "bytes": (ours.bytes_per_token or 0) * ours.standing,
        "kv_saved": report.kv_saved(lane) or 0.0,
        "regret": [float(losses.sum()), len(ids), float(losses.max())],
        "same_text": is_same,
        "repeats": repeated_share(without_end(loaded, report.trace.token_ids(BASELINE))),
        "decoder": report.trace.header.device.get("decoder"),
    }


def figures(counts: Sequence[Row], kinds: Sequence[str]) -> Row:
    """A method's figures over its answers.

    Args:
        counts: of each prompt.
        kinds: the same.

    Returns:
        `speedup` with its interval `speedup_low` to `speedup_high`, `bound`, the share `accepted` of drafts, tokens
        per second of both lanes, `layer_runs`, `layer_rows` and `bytes` a token, `kv_saved`; `regret` in nats a token
        with its interval, and the `worst` one; how many answers are the full model's (`same_texts`), of how many
        `texts`; `by_repeats` and `by_kind`, the speeds of groups of prompts, of those that hold some.
    """
    (ours, base), (ms, base_ms) = (
        map(sum, zip(*(row[name] for row in counts), strict=True)) for name in ("tokens", "ms")
    )
    losses = [(row["regret"][0], row["regret"][1]) for row in counts]
    low, high = ratio_interval(losses) or (None, None)
    by_repeats: dict[str, list[Row]] = {name: [] for name in REPETITION}
    by_kind: dict[str, list[Row]] = {kind: [] for kind in kinds if kind}
    for row, kind in zip(counts, kinds, strict=True):
        by_repeats[repetition(row["repeats"])].append(row)
        if kind:
            by_kind[kind].append(row)
    return {
        **_speed(counts),
        "tokens_per_second": quotient(1000 * ours, ms),
        "baseline_tokens_per_second": quotient(1000 * base, base_ms),
        **{
            name: sum(row[name] for row in counts) / max(ours, 1)
            for name in ("layer_runs", "layer_rows", "bytes")
            if name in counts[0]  # the first ones of a measurement that goes on may lack the rows
        },
        "kv_saved": statistics.mean(row["kv_saved"] for row in counts),
        "regret": sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses),
        **{"regret_low": low, "regret_high": high, "worst": max(row["regret"][2] for row in counts)},
        "same_texts": sum(row["same_text"] for row in counts),
        "texts": len(counts),
        "by_repeats": {name: _speed(rows) for name, rows in by_repeats.items() if rows},
        "by_kind": {kind: _speed(rows) for kind, rows in by_kind.items()},
        "decoder": counts[0]["decoder"],
    }


def _speed(counts: Sequence[Row]) -> Row:
    """Speed, bound and accepted drafts on some prompts, and the number of `prompts`."""
    speed: dict[str, Any] = speed_figures(counts)
    low, high = speed.pop("speedup_interval") or (None, None)
    return {"speedup": speed.pop("speedup"), "speedup_low": low, "speedup_high": high, **speed, "prompts": len(counts)}
