"""Run the paper's tasks with the full model and LoRA-Drop: how often each is right, and how far apart they are.

A benchmark is a folder: `records.jsonl` grows by a line a record, `benchmark.json` and `benchmark.md` have the table.
Called again with the same model, settings and machine it runs the records that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lora_drop.adapters.find import bank_folder, config_fingerprint, find_bank
from lora_drop.adapters.hub import bank_name
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import SCORES
from lora_drop.evaluation.measure.point import circumstances
from lora_drop.evaluation.tasks.base import Example, Options, Say, Task
from lora_drop.evaluation.tasks.runner import LANES, Runner
from lora_drop.evaluation.tasks.sandbox import protection
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.interval import ratio_interval
from lora_drop.models.load import LoadedModel
from lora_drop.run.results.files import BENCHMARK, RECORDS_NAME, TABLE_NAME, TASK_RECORD
from lora_drop.run.results.store import Content, Lines, Row, Store

Work = list[tuple[Task, list[Example]]]
Z95 = 1.959964


def benchmark(
    loaded: LoadedModel,
    config: LoraDropConfig,
    work: Work,
    options: Options,
    say: Say = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """Run every record that the folder does not hold yet, and write the table.

    Args:
        work: from `tasks.read_tasks`.
        say: called with one line for a record that could not be run, and for a program that met a limit.
        progress: called with the records done and all of them, first with those already there.

    Returns:
        The content of `benchmark.json`.

    Raises:
        LoraDropError: settings that do not fit the model, or a folder that cannot be written or holds another one.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    runner = Runner(loaded, loaded.new_decoder(), schedule, bank, options, say)
    store = Store(BENCHMARK, options.out, _content(runner, config, notes, work), _table)
    store.write()  # the records to come belong to these settings
    lines = Lines(options.out / RECORDS_NAME, TASK_RECORD)
    records = {(record["task"], record["id"], record["example"]): record for record in lines.records}
    missing = [(task, ex) for task, examples in work for ex in examples if _key(task, ex) not in records]
    total = sum(len(examples) for _, examples in work)
    progress(total - len(missing), total)
    for done, (task, example) in enumerate(missing, start=total - len(missing) + 1):
        record = _run(runner, task, example)
        lines.append(record)
        records[_key(task, example)] = record
        progress(done, total)
    rows = [summarise(task, [records[_key(task, example)] for example in examples]) for task, examples in work]
    store.write(rows)
    return store.content


def _run(runner: Runner, task: Task, example: Example) -> Row:
    """The record of an example; one that cannot be run says why."""
    try:
        outcome = runner.run(task, example)
    except LoraDropError as error:
        runner.say(f"{example.id}: {str(error).rstrip('.')}; left out.")
        outcome = {"skipped": str(error)}
    return {"task": task.name, "id": example.id, "part": example.part, "example": example.fingerprint, **outcome}


def _content(runner: Runner, config: LoraDropConfig, notes: list[str], work: Work) -> Content:
    """A benchmark without rows: where it runs and with which settings."""
    loaded, schedule, bank, options = runner.loaded, runner.schedule, runner.bank, runner.options
    folder = bank_folder(loaded, config, schedule) if bank else None
    about = circumstances(loaded)
    if options.run_code and any(task.runs_code for task, _ in work) and protection() != "namespaces":
        notes = [*notes, "generated programs ran without the kernel's namespaces: a weak sandbox."]
    return BENCHMARK.begin(
        about | {"device": about["device"] | {"decoder": runner.decoder.name}},
        settings={
            **config.replace(adapters=bank_name(folder.resolve()) if folder else "none").differences(),
            "dropped": list(schedule.dropped),
            "rank": bank.rank if bank else 0,
            "adapters_fingerprint": config_fingerprint(loaded, config) if bank else None,
            "max_new_tokens": options.max_new_tokens,
            "context_tokens": options.context_tokens,
            "run_code": options.run_code,
        },
        notes=notes,
    )


def _table(content: Content) -> dict[str, str]:
    return {TABLE_NAME: markdown(content)} if content["rows"] else {}


def _key(task: Task, example: Example) -> tuple[str, str, str]:
    return task.name, example.id, example.fingerprint


# ---- the table: scores and quality of both lanes, each with an interval ----


def summarise(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a task's row. Intervals are 95%: Wilson's for accuracies, a bootstrap over records for all other values.

    `difference` is LoRA-Drop's score minus the full model's on the same records, `same_answer` the share of records
    with equal answers. NLL, KL and agreement are means over the gold texts' tokens.
    """
    ran = [record for record in records if "skipped" not in record]
    scored = [record for record in ran if record["baseline"]["score"] is not None]
    row: dict[str, Any] = {
        "task": task.name,
        "metric": task.metric,
        "chance": task.chance,
        "records": len(ran),
        "scored": len(scored),
        "skipped": len(records) - len(ran),
        "cut": sum(record["cut"] for record in ran),
    }
    scores = {lane: np.array([record[lane]["score"] for record in scored], float) for lane in LANES}
    for lane in LANES:
        row[lane] = _wilson(scores[lane]) if task.accuracy else _bootstrap(scores[lane])
    row["difference"] = _bootstrap(scores["lora_drop"] - scores["baseline"])
    same = [record["baseline"]["answer"] == record["lora_drop"]["answer"] for record in scored]
    row["same_answer"] = sum(same) / len(same) if same else None
    for steps in ("all_steps", "lora_steps"):
        counted = [record[steps] for record in ran if record[steps]["count"]]
        counts = np.array([means["count"] for means in counted], float)
        row[f"{steps}_count"] = int(counts.sum())
        values = {name: np.array([means[name] for means in counted], float) for name in SCORES}
        values["nll_gap"] = values["nll_lora_drop"] - values["nll_baseline"]
        for name, each in values.items():
            row[f"{steps}_{name}"] = _bootstrap(each, counts)
    row["parts"] = _parts(scored)
    return row


def _parts(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both lanes' mean scores by language, subtask or dataset."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(record["part"], []).append(record)
    return {
        part: {"records": len(group)} | {lane: sum(r[lane]["score"] for r in group) / len(group) for lane in LANES}
        for part, group in sorted(parts.items())
    }


def _wilson(scores: np.ndarray) -> dict[str, float | None]:
    """The share of ones, with Wilson's score interval."""
    n = len(scores)
    if not n:
        return {"value": None, "low": None, "high": None}
    p = float(scores.mean())
    middle, spread = p + Z95**2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    low, high = ((middle + sign * spread) / (1 + Z95**2 / n) for sign in (-1, 1))
    return {"value": p, "low": max(low, 0.0), "high": min(high, 1.0)}


def _bootstrap(values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float | None]:
    """The weighted mean, with its interval over resampled records."""
    if not len(values):
        return {"value": None, "low": None, "high": None}
    weights = np.ones(len(values)) if weights is None else weights
    value = float((values * weights).sum() / weights.sum())
    low, high = ratio_interval(list(zip(values * weights, weights, strict=True))) or (value, value)
    return {"value": value, "low": low, "high": high}


def markdown(result: dict[str, Any]) -> str:
    """Write the table as Markdown: scores first, then the quality on the gold texts."""
    return "\n".join([*_score_table(result["rows"]), "", *_quality_table(result["rows"])]) + "\n"


def _score_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| task | metric | records | chance | full model [95%] | LoRA-Drop [95%] | difference [95%] | same answer |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        chance = "" if row["chance"] is None else f"{100 * row['chance']:.0f}"
        cells = [row["task"], row["metric"], str(row["scored"]), chance]
        cells += [_range(row[lane], 100, ".1f") for lane in LANES]
        cells += [_range(row["difference"], 100, "+.1f"), _cell(row["same_answer"], 100, ".0f", "%")]
        yield f"| {' | '.join(cells)} |"


def _quality_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| task | gold tokens | NLL, full model | NLL, LoRA-Drop | NLL gap [95%] | KL, all steps | "
        "same next token, LoRA steps [95%] |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [row["task"], f"{row['all_steps_count']:,}"]
        cells += [_cell(row[f"all_steps_{name}"]["value"], 1, ".3f") for name in ("nll_baseline", "nll_lora_drop")]
        cells += [_range(row["all_steps_nll_gap"], 1, "+.3f"), _cell(row["all_steps_kl"]["value"], 1, ".3f")]
        cells.append(_range(row["lora_steps_top1_agreement"], 100, ".1f", "%"))
        yield f"| {' | '.join(cells)} |"


def _cell(value: float | None, scale: float, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{scale * value:{form}}{unit}"


def _range(interval: dict[str, float | None], scale: float, form: str, unit: str = "") -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:  # all three are None, or none is
        return "-"
    return f"{scale * value:{form}}{unit} [{scale * low:{form}}, {scale * high:{form}}]"
