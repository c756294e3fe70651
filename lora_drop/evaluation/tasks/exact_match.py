"""Tasks whose generated answer is right or wrong: GSM8K, MATH, BIG-Bench Hard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.reading import BrokenRecord, Say, text_in, text_of


class GSM8K(Task):
    """Grade-school problems: the number after `####`, else the last one in the text."""

    name, metric = "gsm8k", "exact match"
    ask = "\n\nThink step by step. End with a line that has only #### and the number."

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`. The gold answer loses its calculator marks."""
        answer = re.sub(r"<<.*?>>", "", text_in(record, "answer"))
        if "####" not in answer:
            raise BrokenRecord("the answer has no ####")
        final = _number(answer.rsplit("####", 1)[1])
        return Example(id, "gsm8k", text_in(record, "question") + self.ask, answer, references=(final,))

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        return _number(text.split("####", 1)[1] if "####" in text else text, last="####" not in text)

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        return float(answer == example.references[0] != "")


def _number(text: str, last: bool = False) -> str:
    """The first or last number of a text in one spelling: `$1,234.50` -> `1234.5`; empty if there is none."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not numbers:
        return ""
    number = numbers[-1 if last else 0].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


class Math(Task):
    r"""Competition problems: the content of the last `\boxed{}`, its LaTeX normalised in a simple way."""

    name, metric = "math", "exact match"
    ask = "\n\nThink step by step. Put the final answer in \\boxed{}."

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        references = (_plain_latex(text_in(record, "answer")),)
        return Example(
            id, "math", text_in(record, "problem") + self.ask, text_in(record, "solution"), references=references
        )

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        return _plain_latex(_boxed(text))

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        return float(answer == example.references[0] != "")


def _boxed(text: str) -> str:
    r"""The content of the last `\boxed{}`, its own braces included; empty without one."""
    start = text.rfind("\\boxed{")
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)) if start >= 0 else ():
        if text[at] == "{":
            depth += 1
        elif text[at] == "}":
            if depth == 0:
                return text[begin:at]
            depth -= 1
    return ""


def _plain_latex(text: str) -> str:
    """A LaTeX answer without spaces, sizes, \\text and a closing stop, which do not change it."""
    text = re.sub(r"\\(?:left|right|!|,|;|:|\s|displaystyle)(?![a-z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|\\%|%|\\\$|\$", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    return re.sub(r"\s+", "", text).rstrip(".")


class _BBHFile(BaseModel):
    examples: list[Any]


class BBH(Task):
    """BIG-Bench Hard: the publishers' three worked examples, then the text after `the answer is`, compared exactly.

    The teacher-forced gold text is the closing sentence alone: the files have no worked answers.
    """

    name, metric, unit = "bbh", "exact match", "example"
    patterns = ("*.json",)

    def read_file(self, path: Path, name: str, say: Say) -> Iterator[Example]:
        """See `Task.read_file`."""
        shots = ""
        prompt_file = path.parent / "cot-prompts" / f"{path.stem}.txt"
        if prompt_file.is_file():
            text = text_of(prompt_file, f"{self.name}/cot-prompts/{prompt_file.name}", say)
            shots = text.partition("-----\n")[2].strip() or text.strip()  # without the publishers' note
        for example in super().read_file(path, name, say):
            yield replace(example, prompt=f"{shots}\n\n{example.prompt}".strip())

    def records(self, path: Path, name: str, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
        """See `Task.records`."""
        text = text_of(path, name, say)
        if not text:
            return
        try:
            examples = _BBHFile.model_validate_json(text).examples
        except ValueError:
            say(f"{name}: this is no JSON object with a list of examples; left out.")
            return
        for number, record in enumerate(examples, start=1):
            if isinstance(record, dict):
                yield number, record
            else:
                say(f"{name}, {self.unit} {number}: this is not an object; left out.")

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        question, target = text_in(record, "input"), text_in(record, "target").strip()
        prompt = f"Q: {question}\nA: Let's think step by step."
        return Example(id, path.stem, prompt, f"So the answer is {target}.", references=(target,), stop=("\nQ:",))

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        ending = re.search(r"answer is:?\s*(.+)", text)
        return ending[1].strip().removesuffix(".").strip().strip('"*') if ending else ""
