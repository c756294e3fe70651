"""The paper's benchmarks, full model and LoRA-Drop in one run: how often each is right, and how far apart they are.

A benchmark is a folder: `records.jsonl` grows by a line a record, `benchmark.json` and `benchmark.md` have the table.
Called again with the same model, settings and machine it runs the records that are missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lora_drop.adapters.find import bank_folder, config_fingerprint, find_bank
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import circumstances
from lora_drop.evaluation.results.store import check_same, json_text, write_texts
from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.options import Options
from lora_drop.evaluation.tasks.reading import Say
from lora_drop.evaluation.tasks.runner import Runner
from lora_drop.evaluation.tasks.sandbox import protection
from lora_drop.evaluation.tasks.table import markdown, summarise
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel

FORMAT, VERSION = "lora-drop-benchmark", 1
JSON_NAME, MD_NAME, RECORDS_NAME = "benchmark.json", "benchmark.md", "records.jsonl"
SAME = ("format", "version", "model", "device", "settings", "software")  # of two benchmarks that are one
Work = list[tuple[Task, list[Example]]]


def benchmark(
    loaded: LoadedModel,
    config: LoraDropConfig,
    work: Work,
    options: Options,
    say: Say = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Run every record that the folder does not hold yet, and write the table.

    Args:
        work: from `tasks.read_tasks`.
        say: called with one line for a record that could not be run, and for a program that met a limit.
        progress: called with the records done and all of them, first with those already there.

    Returns:
        The content of `benchmark.json`: `{"model", "device", "settings", "software", "date", "notes", "rows"}`.

    Raises:
        LoraDropError: settings that do not fit the model, or a folder that cannot be written or holds another one.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    runner = Runner(loaded, loaded.new_decoder(), schedule, bank, options, say)
    result = _content(runner, config) | {"notes": notes, "rows": []}
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
                say(f"{example.id}: {str(error).rstrip('.')}; left out.")
                found = {"skipped": str(error)}
            head = {"task": task.name, "id": example.id, "part": example.part, "example": example.fingerprint}
            _append(file, records, head | found, options.out)
            progress(done, total)
    result["rows"] = [
        summarise(task, [records[_key(task, example)] for example in examples]) for task, examples in work
    ]
    write_texts({JSON_NAME: json_text(result), MD_NAME: markdown(result)}, options.out, "the benchmark")
    return result


def _content(runner: Runner, config: LoraDropConfig) -> dict[str, Any]:
    """Where a benchmark runs and with which settings."""
    loaded, schedule, bank, options = runner.loaded, runner.schedule, runner.bank, runner.options
    folder = bank_folder(loaded, config, schedule) if bank else None
    about = circumstances(loaded)
    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "device": about["device"] | {"decoder": runner.decoder.name},
        "settings": {
            **config.replace(adapters=folder.resolve().name if folder else "none").differences(),
            "dropped": list(schedule.dropped),
            "rank": bank.rank if bank else 0,
            "adapters_fingerprint": config_fingerprint(loaded, config) if bank else None,
            "max_new_tokens": options.max_new_tokens,
            "context_tokens": options.context_tokens,
            "run_code": options.run_code,
        },
    }


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
