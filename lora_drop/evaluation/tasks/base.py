"""A task: how its files are read, how an example is asked, how an answer is scored.

A broken line is reported once, with its file and number, and left out.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError

Say = Callable[[str], None]


class BrokenRecord(ValueError):
    """A record that lacks something that its task needs."""


@dataclass(frozen=True)
class Options:
    """A benchmark's options, beside model and schedule.

    Args:
        names: of `TASKS`; None takes those that the data folder has.
        limit: records a task; None takes all.
        run_code: run generated programs in a sandbox; without it code tasks have no score.
        max_new_tokens: of a generated answer.
        context_tokens: most tokens of a prompt, a longer one loses its middle; None is the model's context.

    Raises:
        LoraDropError: a number is too small.
    """

    data_dir: Path
    out: Path
    names: tuple[str, ...] | None = None
    limit: int | None = None
    run_code: bool = False
    max_new_tokens: int = 256
    context_tokens: int | None = None

    def __post_init__(self):
        for name, least in (("limit", 1), ("max_new_tokens", 1), ("context_tokens", 16)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LoraDropError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")


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

    def program(self, example: Example, answer: str) -> str:
        """Join a generated answer with the tests that it has to pass."""
        return f"{answer}\n\n{example.tests}\n"


def text_of(path: Path, name: str, say: Say) -> str:
    """Read a file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        say(f"{name}: cannot be read ({error.strerror or error}); left out.")
    except UnicodeDecodeError:
        say(f"{name}: this is not UTF-8 text; left out.")
    return ""


def records_of(path: Path, name: str, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read (line, record) of a JSONL file, or of a TSV file with a header."""
    lines = enumerate(text_of(path, name, say).split("\n"), start=1)
    header = next(lines)[1].split("\t") if path.suffix == ".tsv" else None
    for number, line in lines:
        if not line.strip():
            continue
        if header is not None:
            cells = line.rstrip("\r").split("\t")
            if len(cells) != len(header):
                say(f"{name}, line {number}: {len(cells)} cells under {len(header)} headings; left out.")
                continue
            yield number, dict(zip(header, cells, strict=True))
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
        except (ValueError, RecursionError):
            say(f"{name}, line {number}: this is not a JSON object; left out.")
            continue
        yield number, record


def text_in(record: dict[str, Any], field: str, may_be_empty: bool = False) -> str:
    """The text in a field. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise BrokenRecord(f"there is no text in a field {field!r}")
    return value


def texts_in(record: dict[str, Any], field: str) -> tuple[str, ...]:
    """The texts in a field that holds a list of them. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise BrokenRecord(f"there is no list of texts in a field {field!r}")
    return tuple(value)


def index_in(record: dict[str, Any], field: str, count: int) -> int:
    """The number in a field, from 0 to `count` - 1. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise BrokenRecord(f"the field {field!r} is no number from 0 to {count - 1}")
    return value
