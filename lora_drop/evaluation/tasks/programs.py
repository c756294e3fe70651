"""Tasks that are scored by running generated programs: HumanEval, MBPP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.reading import BrokenRecord, Say, records_of, text_in, texts_in


class HumanEval(Task):
    """Functions by their docstring: pass@1 of the greedy continuation, by the record's tests."""

    name, metric, runs_code = "humaneval", "pass@1", True
    stop = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\n```")

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        # The line break begins the solution: tokenizers join it with the indentation.
        prompt, solution = text_in(record, "prompt").rstrip(), "\n" + text_in(record, "canonical_solution")
        tests = f"{text_in(record, 'test')}\n\ncheck({text_in(record, 'entry_point')})"
        return Example(id, "humaneval", prompt, solution, chat=False, stop=self.stop, tests=tests)

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`: its indentation is part of it."""
        return text.rstrip()


class MBPP(Task):
    """Small programs by a sentence and three tests: pass@1 on the test split (task_id 11 to 510).

    The publishers' three shots (tasks 2, 3 and 4) come before each prompt if the data has them.
    """

    name, metric, runs_code = "mbpp", "pass@1", True
    shots, split = (2, 3, 4), range(11, 511)

    def read_file(self, path: Path, name: str, say: Say) -> Iterator[Example]:
        """See `Task.read_file`."""
        shots: dict[int, str] = {}
        for other in self.files(path.parent.parent):
            # Silently: broken lines are reported when their own file is read.
            for _, record in records_of(other, other.name, lambda line: None):
                if record.get("task_id") in self.shots:
                    with suppress(BrokenRecord):
                        shots[record["task_id"]] = f"{self._ask(record)}{self._code(record)}\n[DONE]\n\n"
        before = "".join(text for _, text in sorted(shots.items()))
        for example in super().read_file(path, name, say):
            yield replace(example, prompt=before + example.prompt)

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example | None:
        """See `Task.example`."""
        if record.get("task_id") not in self.split:
            return None
        tests = "\n".join([text_in(record, "test_setup_code", may_be_empty=True), *texts_in(record, "test_list")])
        target = f"{self._code(record)}\n[DONE]"
        return Example(id, "mbpp", self._ask(record), target, chat=False, stop=("[DONE]", "\n```\n"), tests=tests)

    @staticmethod
    def _ask(record: dict[str, Any]) -> str:
        tests = "\n".join(texts_in(record, "test_list"))
        return (
            f"You are an expert Python programmer, and here is your task: {text_in(record, 'text')} "
            f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        )

    @staticmethod
    def _code(record: dict[str, Any]) -> str:
        return text_in(record, "code").replace("\r\n", "\n").strip()


def program(task: Task, example: Example, answer: str) -> str:
    """Join a generated answer with the tests that it has to pass."""
    start = example.prompt if isinstance(task, HumanEval) else ""
    return f"{start}{answer}\n\n{example.tests}\n"
