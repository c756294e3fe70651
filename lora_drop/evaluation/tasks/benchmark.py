"""The paper's benchmarks, full model and LoRA-Drop in one run: how often each is right, and how far apart they are.

A choice is scored by the log-likelihood of its tokens, decoded through the real schedule. An answer is generated
greedily. And of every record the gold text is teacher-forced through the schedule: NLL, KL and agreement tell of a
small model what its accuracy, near chance, cannot.

A benchmark is a folder: `records.jsonl` grows by a line a record, `benchmark.json` and `benchmark.md` have the table.
Called again with the same model, settings and machine it runs the records that are missing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import bank_folder, config_fingerprint, find_bank
from lora_drop.decode import Decoder, Lane, Sampling
from lora_drop.decode.logits import log_probs, nll
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.metrics import Means, decode_target, read_target
from lora_drop.evaluation.sweep import check_same, circumstances, json_text, write_texts
from lora_drop.evaluation.tasks.options import Options
from lora_drop.evaluation.tasks.sandbox import protection, run_program
from lora_drop.evaluation.tasks.tasks import Example, Task, Tell, program
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import Detokenizer, encode_prompt, encode_text

FORMAT, VERSION = "lora-drop-benchmark", 1
JSON_NAME, MD_NAME, RECORDS_NAME = "benchmark.json", "benchmark.md", "records.jsonl"
SAME = ("format", "version", "model", "device", "settings", "software")  # of two benchmarks that are one
LANES = ("baseline", "lora_drop")
LABELS = {"baseline": "full model", "lora_drop": "LoRA-Drop"}
Z95 = 1.959964
RESAMPLES = 2000
Work = list[tuple[Task, list[Example]]]


# ---- one record -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """The two lanes that answer: the model's decoder with a schedule each."""

    loaded: LoadedModel
    decoder: Decoder
    schedule: Schedule
    bank: AdapterBank | None
    options: Options
    tell: Tell

    def run(self, task: Task, example: Example) -> dict[str, Any]:
        """A record's results.

        Returns:
            `{"cut", "baseline": {"score", "answer", ...}, "lora_drop": {same}, "lora_steps": {...}, "all_steps":
            {...}}`; a score is None where it would take running code and that is off.

        Raises:
            LoraDropError: the record does not fit the model's context.
        """
        generates = not example.choices and (self.options.run_code or not task.runs_code)
        tokenizer = self.loaded.tokenizer
        texts = example.choices or (example.target,)
        follow = {text: encode_text(tokenizer, text) for text in texts}
        if not all(follow.values()):
            raise LoraDropError("an answer has no token")
        room = self.loaded.context - max([*map(len, follow.values()), self.options.max_new_tokens * generates])
        limit = min(room, self.options.context_tokens or room)
        if limit < 1:
            raise LoraDropError(f"its answer alone fills the context of {self.loaded.context} tokens")
        prompt, cut = fit_prompt(tokenizer, example.prompt, example.chat, limit)
        quality, sums = self._quality(prompt, follow, example.target)
        result = {"cut": cut, **quality}
        for lane in LANES:
            if example.choices:
                result[lane] = self._choice(example, sums[lane])
            elif generates:
                result[lane] = self._generated(task, example, prompt, lane)
            else:
                result[lane] = {"score": None, "answer": None}
        return result

    def _quality(
        self, prompt: list[int], follow: dict[str, list[int]], target: str
    ) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Teacher-forced means over the target's tokens, and each text's log-likelihood in both lanes."""
        lora, every = Means(), Means()
        sums: dict[str, list[float]] = {lane: [] for lane in LANES}
        for text, ids in follow.items():
            full = read_target(self.decoder, prompt, ids)
            ours, at_lora, _ = decode_target(self.decoder, self.schedule, self.bank, prompt, ids)
            tokens = torch.tensor(ids, device=self.loaded.device)
            for lane, logits in zip(LANES, (full, ours), strict=True):
                sums[lane].append(log_likelihood(logits, tokens))
            if text == target:
                every.add(full, ours, tokens)
                lora.add(full[at_lora], ours[at_lora], tokens[at_lora])
        return {"lora_steps": lora.to_dict(), "all_steps": every.to_dict()}, sums

    @staticmethod
    def _choice(example: Example, sums: list[float]) -> dict[str, Any]:
        """The likeliest choice a character: lm-eval's `acc_norm`."""
        choices = list(dict.fromkeys(example.choices))  # as `sums` has them
        normed = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        best = max(range(len(choices)), key=normed.__getitem__)
        return {"score": float(choices[best] == example.target), "answer": best, "log_likelihoods": sums}

    def _generated(self, task: Task, example: Example, prompt: list[int], lane: str) -> dict[str, Any]:
        if lane == "baseline":
            schedule, bank = baseline_schedule(self.loaded.num_layers), None
        else:
            schedule, bank = self.schedule, self.bank
        text = generate_text(
            self.loaded, self.decoder, schedule, bank, prompt, self.options.max_new_tokens, example.stop
        )
        answer = task.answer(example, text)
        result = {"answer": answer, "text": text}
        if not task.runs_code:
            return {"score": task.score(example, answer), **result}
        outcome = run_program(program(task, example, answer))
        if outcome.met_a_limit:
            self.tell(f"{example.id}, {LABELS[lane]}'s program: {outcome.reason}.")
        return {"score": float(outcome.passed), "reason": outcome.reason, **result}


def log_likelihood(logits: Tensor, tokens: Tensor) -> float:
    """The sum of log-probabilities (nats) of tokens (T,) under logits (T, V)."""
    return -float(nll(log_probs(logits), tokens).sum())


def fit_prompt(tokenizer: Any, text: str, chat: bool, limit: int) -> tuple[list[int], bool]:
    """The prompt's token ids, at most `limit`, and whether its middle had to go (both ends hold what is asked).

    Raises:
        LoraDropError: the chat template alone is longer.
    """
    ids = encode_prompt(tokenizer, text, chat)
    if len(ids) <= limit:
        return ids, False
    inner = encode_text(tokenizer, text)
    keep = limit - (len(ids) - len(inner))
    while keep > 1:
        half = keep // 2
        ends = tokenizer.decode(inner[:half]), tokenizer.decode(inner[-half:])
        ids = encode_prompt(tokenizer, f"{ends[0].rstrip(chr(0xFFFD))} {ends[1].lstrip(chr(0xFFFD))}", chat)
        if len(ids) <= limit:
            return ids, True
        keep -= max(1, len(ids) - limit)  # text cut between two tokens may be spelled with more of them
    raise LoraDropError(f"the prompt does not fit into {limit} tokens")


def generate_text(
    loaded: LoadedModel,
    decoder: Decoder,
    schedule: Schedule,
    bank: AdapterBank | None,
    prompt_ids: list[int],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    stop_ids: frozenset[int] = frozenset(),
) -> str:
    """What a lane writes after a prompt, greedily unless `sampling` says otherwise.

    It ends at `max_new_tokens`, at one of the model's stop tokens or of `stop_ids`, or before the first of the `stop`
    texts.
    """
    ids, stop_ids = torch.tensor([prompt_ids], device=loaded.device), loaded.stop_ids | stop_ids
    lane = Lane(decoder, ids, schedule, bank, sampling or Sampling(), max_new_tokens, stop_ids)
    detokenizer, text = Detokenizer(loaded.tokenizer), ""
    longest = max(map(len, stop), default=0)
    for step in lane:
        if step.token_id in stop_ids:
            break
        piece = detokenizer.add(step.token_id)
        start = max(0, len(text) - longest)
        text += piece
        if found := [at for at in (text.find(end, start) for end in stop) if at >= 0]:
            return text[: min(found)]
    return text


# ---- all of them ----------------------------------------------------------------------------------------------------


def benchmark(
    loaded: LoadedModel,
    config: LoraDropConfig,
    work: Work,
    options: Options,
    tell: Tell = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Run every record that the folder does not hold yet, and write the table.

    Args:
        work: from `tasks.read_tasks`.
        tell: called with one line for a record that could not be run, and for a program that met a limit.
        progress: told the records done and all of them, first with those already there.

    Returns:
        The content of `benchmark.json`: `{"model", "device", "settings", "software", "date", "notes", "rows"}`.

    Raises:
        LoraDropError: settings that do not fit the model, or a folder that cannot be written or holds another one.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    runner = Runner(loaded, loaded.new_decoder(), schedule, bank, options, tell)
    folder = bank_folder(loaded, config, schedule) if bank else None
    result = {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "settings": {
            **replace(config, adapters=folder.resolve().name if folder else "none").to_dict(),
            "dropped": list(schedule.dropped),
            "rank": bank.rank if bank else 0,
            "adapters_fingerprint": config_fingerprint(loaded, config) if bank else None,
            "max_new_tokens": options.max_new_tokens,
            "context_tokens": options.context_tokens,
            "run_code": options.run_code,
        },
        "notes": notes,
        "rows": [],
    }
    result["device"] = result["device"] | {"decoder": runner.decoder.name}
    if options.run_code and any(task.runs_code for task, _ in work) and protection() != "namespaces":
        result["notes"].append("generated programs ran without the kernel's namespaces: a weak sandbox.")
    _begin(result, options.out)
    records = _read_records(options.out)
    missing = [(task, ex) for task, examples in work for ex in examples if _key(task, ex) not in records]
    total = sum(len(examples) for _, examples in work)
    progress(total - len(missing), total)
    with _appending(options.out) as file:
        for done, (task, example) in enumerate(missing, start=total - len(missing) + 1):
            try:
                found = runner.run(task, example)
            except LoraDropError as error:
                tell(f"{example.id}: {str(error).rstrip('.')}; left out.")
                found = {"skipped": str(error)}
            head = {"task": task.name, "id": example.id, "part": example.part, "example": example.fingerprint}
            _append(file, records, head | found, options.out)
            progress(done, total)
    result["rows"] = [
        summarise(task, [records[_key(task, example)] for example in examples]) for task, examples in work
    ]
    write_texts({JSON_NAME: json_text(result), MD_NAME: markdown(result)}, options.out, "the benchmark")
    return result


def _key(task: Task, example: Example) -> tuple[str, str, str]:
    return task.name, example.id, example.fingerprint


def _begin(result: dict[str, Any], folder: Path) -> None:
    """Check what the folder holds, or write the settings that its records are going to have."""
    path = folder / JSON_NAME
    if not path.exists():
        write_texts({JSON_NAME: json_text(result)}, folder, "the benchmark")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise LoraDropError(f"{folder.name}/{JSON_NAME} cannot be read: name another --out, or delete it.") from None
    check_same(before, result, SAME, folder, "a benchmark")


def _read_records(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What ran before, by task, id and fingerprint. A last line cut short by the end of a run is taken off."""
    path = folder / RECORDS_NAME
    try:
        if not path.exists():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        records = [json.loads(line) for line in whole.splitlines()]
        return {(record["task"], record["id"], record["example"]): record for record in records}
    except OSError as error:
        raise LoraDropError(f"cannot read {folder.name}/{RECORDS_NAME}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LoraDropError(f"{folder.name}/{RECORDS_NAME} is broken: name another --out, or delete it.") from None


def _appending(folder: Path) -> IO[str]:
    try:
        return (folder / RECORDS_NAME).open("a", encoding="utf-8")
    except OSError as error:
        raise LoraDropError(f"cannot write {folder.name}/{RECORDS_NAME}: {error.strerror or error}.") from None


def _append(file: IO[str], records: dict, record: dict[str, Any], folder: Path) -> None:
    try:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
    except (OSError, ValueError) as error:  # ValueError: not a number, which JSON has no word for
        raise LoraDropError(f"cannot write {folder.name}/{RECORDS_NAME}: {error}.") from None
    records[record["task"], record["id"], record["example"]] = record


# ---- the table ------------------------------------------------------------------------------------------------------


def summarise(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A task's row. Intervals are 95%: Wilson's for accuracies, a bootstrap over records for all other values.

    `difference` is LoRA-Drop's score less the full model's over the same records, `same_answer` the share of records
    that both answer alike. NLL, KL and agreement are means over the gold texts' tokens.
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
        values = {name: np.array([means[name] for means in counted], float) for name in _QUALITY}
        values["nll_gap"] = values["nll_lora_drop"] - values["nll_baseline"]
        for name, each in values.items():
            row[f"{steps}_{name}"] = _bootstrap(each, counts)
    row["parts"] = _parts(scored)
    return row


_QUALITY = ("nll_baseline", "nll_lora_drop", "kl", "top1_agreement")


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
    """The share of ones with Wilson's score interval."""
    n = len(scores)
    if not n:
        return {"value": None, "low": None, "high": None}
    p = float(scores.mean())
    middle, spread = p + Z95**2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    low, high = ((middle + sign * spread) / (1 + Z95**2 / n) for sign in (-1, 1))
    return {"value": p, "low": max(low, 0.0), "high": min(high, 1.0)}


def _bootstrap(values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float | None]:
    """The weighted mean with the middle 95% of the means of resampled records; always the same draws."""
    n = len(values)
    if not n:
        return {"value": None, "low": None, "high": None}
    weights = np.ones(n) if weights is None else weights
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": float((values * weights).sum() / weights.sum()), "low": float(low), "high": float(high)}


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown: scores first, then what the gold texts tell."""
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
        "| task | gold tokens | NLL, full model | NLL, LoRA-Drop | nats lost [95%] | KL, all steps | "
        "same top token, LoRA steps [95%] |"
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
    if interval["value"] is None:
        return "-"
    low, high = (f"{scale * interval[name]:{form}}" for name in ("low", "high"))
    return f"{scale * interval['value']:{form}}{unit} [{low}, {high}]"
