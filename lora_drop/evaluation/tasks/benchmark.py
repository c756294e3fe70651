"""Run the paper's tasks with the full model and LoRA-Drop: how often each is right, and how far apart they are.

lm-eval's evaluator asks and scores each record, once a lane. The gold text of every record is also teacher-forced
through the schedule: on a small model, whose accuracy is near chance, NLL, KL and agreement say more.

A benchmark is a folder: `records.jsonl` grows by a line a record, `benchmark.json` and `benchmark.md` have the table.
Called again with the same model, settings and machine it runs the records that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_drop.adapters.find import bank_folder, config_fingerprint, find_bank
from lora_drop.adapters.hub import bank_name
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import SCORES, decode_target, means, read_target, score
from lora_drop.evaluation.measure.point import circumstances
from lora_drop.evaluation.tasks.model import LaneLM
from lora_drop.evaluation.tasks.sandbox import WALLS, protection
from lora_drop.evaluation.tasks.utils import Doc, Options, Say
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.interval import ratio_interval
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt, encode_text
from lora_drop.run.results.files import BENCHMARK, RECORDS_NAME, TABLE_NAME, TASK_RECORD
from lora_drop.run.results.store import Content, Lines, Row, Store

LANES = {"baseline": "full model", "lora_drop": "LoRA-Drop"}
Z95 = 1.959964


def read_tasks(options: Options, say: Say) -> dict[str, Any]:
    """Read tasks of lm-eval with their documents.

    Args:
        say: called with one line for each broken line or file; it is left out.

    Returns:
        Tasks of lm-eval by name.

    Raises:
        LoraDropError: a task without data.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every local task
    about = {"data_dir": str(options.data_dir), "limit": options.limit, "say": say}
    manager = TaskManager(include_path=Path(__file__).parent, include_defaults=False, metadata=about)
    tasks: dict[str, Any] = manager.load(list(options.names))["tasks"]
    for task in tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": options.max_new_tokens}, update=True)
    return tasks


@dataclass(frozen=True)
class Runner:
    """The two lanes that answer: the model's decoder, with the full schedule and with LoRA-Drop's."""

    lanes: dict[str, LaneLM]
    options: Options
    say: Say

    def run(self, task: Any, doc: Doc) -> Row:
        """Run a document of a task.

        Returns:
            `{"cut", "baseline": {"score", "answer", ...}, "lora_drop": {same}, "lora_steps": {...}, "all_steps":
            {...}}`; a score is None where it needs running code and that is off.

        Raises:
            LoraDropError: the document does not fit the model's context.
        """
        loaded = self.lanes["lora_drop"].loaded
        runs_code, choices = task.config.unsafe_code, doc.get("choices", [])
        generates = not choices and (self.options.run_code or not runs_code)
        chat = (task.config.generation_kwargs or {}).get("chat", False)
        delimiter = task.config.target_delimiter if choices else ""
        follow = [encode_text(loaded.tokenizer, delimiter + text) for text in choices or [doc["target"]]]
        if not all(follow):
            raise LoraDropError("an answer has no token")
        room = loaded.context - max([*map(len, follow), self.options.max_new_tokens * generates])
        limit = min(room, self.options.context_tokens or room)
        if limit < 1:
            raise LoraDropError(f"its answer alone fills the context of {loaded.context} tokens")
        prompt, cut = fit_prompt(loaded.tokenizer, doc["prompt"], chat, limit)
        target = delimiter + doc["target"]
        record = {"cut": cut, **self._quality(encode_prompt(loaded.tokenizer, prompt, chat), target)}
        for lane, lm in self.lanes.items():
            if choices or generates:
                record[lane] = _ask(lm, task, {**doc, "prompt": prompt})
                if runs_code and re.match(WALLS, reason := record[lane]["reason"]):
                    self.say(f"{doc['id']}, {LANES[lane]}'s program: {reason}.")
            else:
                record[lane] = {"score": None, "answer": None}
        return record

    def _quality(self, prompt: list[int], target: str) -> Row:
        """Teacher-forced means over the target's tokens."""
        ours = self.lanes["lora_drop"]
        ids = encode_text(ours.tokenizer, target)
        full = read_target(ours.decoder, prompt, ids)
        logits, at_lora, _ = decode_target(ours.decoder, ours.schedule, ours.bank, prompt, ids)
        scores = score(full, logits, torch.tensor(ids, device=logits.device))
        return {"lora_steps": means(scores[at_lora]), "all_steps": means(scores)}


def _ask(lm: LaneLM, task: Any, doc: Doc) -> Row:
    """A lane's answer to a document and its score, by lm-eval's evaluator."""
    from lm_eval.evaluator import evaluate

    task.dataset = {"test": [doc]}
    with redirect_stderr(io.StringIO()):  # a progress bar a request
        output = evaluate(lm, {"tasks": {task.task_name: task}}, bootstrap_iters=0, confirm_run_unsafe_code=True)
    [sample] = output["samples"][task.task_name]
    row = {"score": float(sample[task.config.metric_list[0]["metric"]])}
    if choices := doc.get("choices"):
        sums = [total for total, _ in sample["filtered_resps"]]
        normed = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        return {**row, "answer": int(np.argmax(normed)), "log_likelihoods": sums}
    row |= {"answer": sample["filtered_resps"][0], "text": sample["resps"][0][0]}
    return {**row, "reason": sample["failures"]} if "failures" in sample else row


def fit_prompt(tokenizer: Any, text: str, chat: bool, limit: int) -> tuple[str, bool]:
    """Fit a prompt into `limit` tokens; a longer one loses its middle, as both ends hold the question.

    Returns:
        The prompt, and true if its middle was cut.

    Raises:
        LoraDropError: the chat template alone is longer.
    """
    ids = encode_prompt(tokenizer, text, chat)
    if len(ids) <= limit:
        return text, False
    inner = encode_text(tokenizer, text)
    keep = limit - (len(ids) - len(inner))
    while keep > 1:
        half = keep // 2
        ends = tokenizer.decode(inner[:half]), tokenizer.decode(inner[-half:])
        shorter = f"{ends[0].rstrip(chr(0xFFFD))} {ends[1].lstrip(chr(0xFFFD))}"
        ids = encode_prompt(tokenizer, shorter, chat)
        if len(ids) <= limit:
            return shorter, True
        keep -= max(1, len(ids) - limit)  # a text cut between two tokens may need more of them
    raise LoraDropError(f"the prompt does not fit into {limit} tokens")


def benchmark(
    loaded: LoadedModel,
    config: LoraDropConfig,
    tasks: dict[str, Any],
    options: Options,
    say: Say = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Content:
    """Run every record that the folder does not hold yet, and write the table.

    Args:
        tasks: from `read_tasks`.
        say: called with one line for a record that could not be run, and for a program that met a limit.
        progress: called with the records done and all of them, first with those already there.

    Returns:
        The content of `benchmark.json`.

    Raises:
        LoraDropError: settings that do not fit the model, or a folder that cannot be written or holds another one.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    decoder = loaded.new_decoder()
    lanes = {
        "baseline": LaneLM(loaded, decoder, baseline_schedule(loaded.num_layers), None),
        "lora_drop": LaneLM(loaded, decoder, schedule, bank),
    }
    runner = Runner(lanes, options, say)
    work = {name: (task, list(task.dataset["test"])) for name, task in tasks.items()}
    runs_code = any(task.config.unsafe_code for task in tasks.values())
    store = Store(BENCHMARK, options.out, _content(runner, config, notes, runs_code), _table)
    store.write()  # the records to come belong to these settings
    lines = Lines(options.out / RECORDS_NAME, TASK_RECORD)
    records = {(record["task"], record["id"], record["example"]): record for record in lines.records}
    keys = {name: [(name, doc["id"], _fingerprint(doc)) for doc in docs] for name, (_, docs) in work.items()}
    total = sum(map(len, keys.values()))
    done = sum(key in records for of_task in keys.values() for key in of_task)
    progress(done, total)
    for name, (task, docs) in work.items():
        for key, doc in zip(keys[name], docs, strict=True):
            if key in records:
                continue
            try:
                outcome = runner.run(task, doc)
            except LoraDropError as error:
                say(f"{doc['id']}: {str(error).rstrip('.')}; left out.")
                outcome = {"skipped": str(error)}
            records[key] = dict(zip(("task", "id", "example"), key, strict=True)) | {"part": doc["part"], **outcome}
            lines.append(records[key])
            done += 1
            progress(done, total)
    store.write(summarise(task, [records[key] for key in keys[name]]) for name, (task, _) in work.items())
    return store.content


def _fingerprint(doc: Doc) -> str:
    """16 hex digits of a hash of a document: a changed one runs again."""
    return hashlib.sha256(json.dumps(doc).encode()).hexdigest()[:16]


def _content(runner: Runner, config: LoraDropConfig, notes: list[str], runs_code: bool) -> Content:
    """A benchmark without rows: where it runs and with which settings."""
    lane, options = runner.lanes["lora_drop"], runner.options
    loaded, schedule, bank = lane.loaded, lane.schedule, lane.bank
    folder = bank_folder(loaded, config, schedule) if bank else None
    about = circumstances(loaded)
    if options.run_code and runs_code and protection() != "namespaces":
        notes = [*notes, "generated programs ran without the kernel's namespaces: a weak sandbox."]
    return BENCHMARK.begin(
        about | {"device": about["device"] | {"decoder": lane.decoder.name}},
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


# ---- the table: scores and quality of both lanes, each with an interval ----


def summarise(task: Any, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a task's row. Intervals are 95%: Wilson's for accuracies, a bootstrap over records for all other values.

    `difference` is LoRA-Drop's score minus the full model's on the same records, `same_answer` the share of records
    with equal answers. NLL, KL and agreement are means over the gold texts' tokens.
    """
    ran = [record for record in records if "skipped" not in record]
    scored = [record for record in ran if record["baseline"]["score"] is not None]
    about = task.config.metadata
    row: dict[str, Any] = {
        "task": task.task_name,
        "metric": about["score"],
        "chance": about.get("chance"),
        "records": len(ran),
        "scored": len(scored),
        "skipped": len(records) - len(ran),
        "cut": sum(record["cut"] for record in ran),
    }
    scores = {lane: np.array([record[lane]["score"] for record in scored], float) for lane in LANES}
    for lane in LANES:
        row[lane] = _wilson(scores[lane]) if about.get("is_share", True) else _bootstrap(scores[lane])
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
