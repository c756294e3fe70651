"""A task: how its files are read, how an example is asked, how an answer is scored."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks.reading import BrokenRecord, Say, records_of


@dataclass(frozen=True)
class Example:
    """One record of a task, ready to be asked.

    Args:
        id: file and line within the data folder.
        part: its language, subtask or dataset.
        target: the gold text that follows the prompt.
        chat: the prompt is a user's message for the chat template; else it is plain text to be continued.
        choices: texts that may follow, the target among them; empty where the answer is generated.
        references: texts that a generated answer is compared with.
        stop: a generated answer ends before any of these.
        tests: code that a generated program has to pass; `program` joins it with the answer.
    """

    id: str
    part: str
    prompt: str
    target: str
    chat: bool = True
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    tests: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of all its fields."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:16]


class Task(ABC):
    """A task of the benchmark.

    Attributes:
        metric: name of the score.
        chance: the score of guessing.
        accuracy: a score is 0 or 1; else it is a share.
        unit: of the number in a record's id: a line of its file, or an example.
        runs_code: scores are made by running generated programs.
        parallel: the files hold the same records in several languages.
        patterns: of the files' names; the first one that any file matches counts.
    """

    name: str
    metric = "accuracy"
    chance: float | None = None
    accuracy = True
    unit = "line"
    runs_code = False
    parallel = False
    patterns: tuple[str, ...] = ("*.jsonl",)

    def read(self, data_dir: Path, say: Say) -> list[Example]:
        """Read all examples, one of each file in turn, so that a limit takes from every language and subtask.

        Args:
            say: called with one line for each broken line or file; it is left out.

        Raises:
            LoraDropError: there is no file, or no readable record in them.
        """
        files = self.files(data_dir)
        if not files:
            raise LoraDropError(f"{self.name}: there is no {self.name}/{self.patterns[0]} in {data_dir.name or '.'}.")
        columns = [list(self.read_file(path, f"{self.name}/{path.name}", say)) for path in files]
        if self.parallel:  # each file begins elsewhere: a limit then asks different records in each language
            count = len(columns)
            columns = [
                [example for shift in range(count) for example in column[(k + shift) % count :: count]]
                for k, column in enumerate(columns)
            ]
        turns = chain.from_iterable(zip_longest(*columns))
        examples = [example for example in turns if example is not None]
        if not examples:
            raise LoraDropError(f"{self.name}: its files hold no record that can be read.")
        return examples

    def files(self, data_dir: Path) -> list[Path]:
        """Its files, sorted by name."""
        matches = (sorted((data_dir / self.name).glob(pattern)) for pattern in self.patterns)
        return next(filter(None, matches), [])

    def read_file(self, path: Path, name: str, say: Say) -> Iterator[Example]:
        """Read the examples of one file."""
        for number, record in self.records(path, name, say):
            where = f"{name}, {self.unit} {number}"
            try:
                example = self.example(record, f"{name}:{number}", path)
            except BrokenRecord as error:
                say(f"{where}: {error}; left out.")
                continue
            if example is not None:
                yield example

    def records(self, path: Path, name: str, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
        """Read the records of one file, each with its number from 1 on."""
        return records_of(path, name, say)

    @abstractmethod
    def example(self, record: dict[str, Any], id: str, path: Path) -> Example | None:
        """Make an example of a record; None if the task does not use it. Raises BrokenRecord."""

    def answer(self, example: Example, text: str) -> str:
        """The answer in a generated text."""
        return text.strip()

    def score(self, example: Example, answer: str) -> float:
        """Score an answer from 0 to 1; here 1 if it is a reference. Not used with `runs_code`."""
        return float(answer.lower() in map(str.lower, example.references))
