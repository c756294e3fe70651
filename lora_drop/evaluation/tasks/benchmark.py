"""Run the paper's tasks with the full model and LoRA-Drop: how often each is right, and how far apart they are.

A benchmark is a folder: `records.jsonl` grows by a line a record, `benchmark.json` and `benchmark.md` have the table.
Called again with the same model, settings and machine it runs the records that are missing.
"""

from __future__ import annotations

from collections.abc import Callable

from lora_drop.adapters.find import bank_folder, config_fingerprint, find_bank
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import circumstances
from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.options import Options
from lora_drop.evaluation.tasks.reading import Say
from lora_drop.evaluation.tasks.runner import Runner
from lora_drop.evaluation.tasks.sandbox import protection
from lora_drop.evaluation.tasks.table import markdown, summarise
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel
from lora_drop.run.results.files import BENCHMARK, RECORDS_NAME, TABLE_NAME, TASK_RECORD
from lora_drop.run.results.store import Content, Lines, Row, Store

Work = list[tuple[Task, list[Example]]]


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
            **config.replace(adapters=folder.resolve().name if folder else "none").differences(),
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
