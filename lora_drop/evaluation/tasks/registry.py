"""The tasks by name.

A data folder has a folder a task, with the files as their publishers wrote them: `gsm8k/*.jsonl`, `math/*.jsonl`,
`bbh/*.json` and `bbh/cot-prompts/*.txt`, `humaneval/*.jsonl`, `mbpp/*.jsonl`, `longbench/*.jsonl`, `xnli/*.tsv`,
`xcopa/*.jsonl`, `hellaswag/*.jsonl`.

Each record becomes an `Example`: a prompt, the gold text that should follow, and either choices or references that a
generated answer is compared with. The prompts are zero-shot unless a task says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.exact_match import BBH, GSM8K, Math
from lora_drop.evaluation.tasks.long_texts import LongBench
from lora_drop.evaluation.tasks.multiple_choice import XCOPA, XNLI, HellaSwag
from lora_drop.evaluation.tasks.programs import MBPP, HumanEval
from lora_drop.evaluation.tasks.reading import Say

TASKS: dict[str, Task] = {
    task.name: task
    for task in (GSM8K(), Math(), BBH(), HumanEval(), MBPP(), LongBench(), XNLI(), XCOPA(), HellaSwag())
}


def read_tasks(
    data_dir: Path, names: Iterable[str] | None, limit: int | None, say: Say
) -> list[tuple[Task, list[Example]]]:
    """Read tasks and their examples.

    Args:
        names: of `TASKS`; None takes those that the folder has.
        limit: examples a task; None takes all.
        say: called with one line for each broken line or file; it is left out.

    Raises:
        LoraDropError: an unknown task, no such folder, or a named task without data.
    """
    chosen = list(TASKS) if names is None else list(dict.fromkeys(names))
    if unknown := [name for name in chosen if name not in TASKS]:
        raise LoraDropError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
    if not data_dir.is_dir():
        raise LoraDropError(
            f"there is no folder {data_dir}: --data-dir names the one that holds gsm8k/, bbh/ and so on."
        )
    tasks = [TASKS[name] for name in chosen if names is not None or TASKS[name].files(data_dir)]
    if not tasks:
        raise LoraDropError(f"{data_dir.name} holds none of the tasks' folders: {', '.join(TASKS)}.")
    return [(task, task.read(data_dir, say)[:limit]) for task in tasks]
