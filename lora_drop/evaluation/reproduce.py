"""Measure shipped speeds again on this machine, and compare them row by row: `python -m lora_drop reproduce`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.bench import rate_of, time_lanes
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.measure.protocol import OFF
from lora_drop.evaluation.rivals import compare_methods
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.report.speed import quotient
from lora_drop.run.request import baseline_lane
from lora_drop.run.results.calibration import timed_here
from lora_drop.run.results.compared import label_of, reported
from lora_drop.run.results.store import Content, Row
from lora_drop.run.trace.records import BASELINE

TRIAL_TOKENS = 33  # of the full model, for the time that the measurement takes


def seconds_needed(loaded: LoadedModel, shipped: Content, prompts: PromptSet) -> float | None:
    """How long the measurement takes at most, by a trial of the full model; None if the clock stood still."""
    lanes = {BASELINE: baseline_lane(loaded.num_layers)}
    trial = time_lanes(loaded, lanes, encode_prompt(loaded.tokenizer, prompts.texts[0]), TRIAL_TOKENS)
    tokens = len(prompts.texts) * shipped["settings"]["tokens"]
    return quotient(tokens * (1 + sum(1 / row["speedup"] for row in reported(shipped))), rate_of([trial], BASELINE))


def reproduce(
    loaded: LoadedModel,
    shipped: Content,
    prompts: PromptSet,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Measure the shipped rows again, by the same protocol; what the folder holds is not measured again.

    Args:
        shipped: of `compare.json`.
        prompts: as many of the shipped figures' prompts as are wanted.
        progress: called with the prompts done and all of them.

    Returns:
        For each shipped row its `method` and `label`, the rows `there` and `here`, and a `verdict`.

    Raises:
        LoraDropError: the weights are others; see `compare_methods`.
    """
    if shipped["model"]["revision"] != loaded.revision:
        raise LoraDropError(
            f"the shipped figures are of {shipped['model']['id']} with other weights than these: run "
            "`lora-drop fetch`, or take the version of LoRA-Drop that measured them."
        )
    there = reported(shipped)
    tokens = shipped["settings"]["tokens"]
    content = compare_methods(loaded, [row["method"] for row in there], prompts, [], folder, tokens, progress)
    here = {row["method"]: row for row in content["rows"]}
    comparable = {row["method"] for row in timed_here(there, shipped, loaded) if row["speedup"] is not None}
    rows = []
    for row in there:
        if prompts.about["sha256"] != shipped["data"]["sha256"]:
            verdict = "other prompts: not comparable"
        elif row["method"] not in comparable:
            verdict = "another processor: not comparable"
        else:
            verdict = _verdict(row, here[row["method"]])
        rows.append({"method": row["method"], "label": label_of(row), "there": row, "here": here[row["method"]]})
        rows[-1]["verdict"] = verdict
    return rows


def _verdict(there: Row, here: Row) -> str:
    if here["speedup"] is None:
        return "not comparable: " + ("refused" if "refused" in here else "too noisy to time")
    off = [name for name in ("speedup", "regret") if not _overlap(there, here, name)]
    return f"differs in {' and '.join(off)}" if off else "agrees"


def _overlap(there: Row, here: Row, name: str) -> bool:
    """True if the intervals of a figure overlap; a figure without one is an interval by itself."""
    (low, high), (other_low, other_high) = (
        [row[name] if row.get(f"{name}_{end}") is None else row[f"{name}_{end}"] for end in ("low", "high")]
        for row in (there, here)
    )
    return bool(low <= other_high and other_low <= high)


def conditions(shipped: Content, rows: list[Row], prompts: PromptSet) -> Iterator[str]:
    """What limits the comparison, a sentence each."""
    if len(prompts.texts) < shipped["data"]["prompts"]:
        yield f"on the first {len(prompts.texts)} of {shipped['data']['prompts']} prompts: the intervals are wider."
    rates = [(row["here"]["baseline_tokens_per_second"], row["there"]["baseline_tokens_per_second"]) for row in rows]
    here, there = next(((here, there) for here, there in rates if here and there), (None, None))
    if here and there:
        yield f"the full model ran at {here:.0f} tokens/s here, and at {there:.0f} beside the shipped rows."
        if abs(here / there - 1) > OFF and any("processor" not in row["verdict"] for row in rows):
            yield "that is another load or another clock: rows may differ for that. Measure again on an idle machine."
