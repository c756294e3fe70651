"""The paper's tasks, by name.

A data folder has a folder a task, with the files as their publishers wrote them: `gsm8k/*.jsonl`, `math/*.jsonl`,
`bbh/*.json` and `bbh/cot-prompts/*.txt`, `humaneval/*.jsonl`, `mbpp/*.jsonl`, `longbench/*.jsonl`, `xnli/*.tsv`,
`xcopa/*.jsonl`, `hellaswag/*.jsonl`.

Each record becomes an `Example`: a prompt, the gold text that should follow, and either choices or references that a
generated answer is compared with. The prompts are zero-shot unless a task says otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks.base import (
    BrokenRecord,
    Example,
    Say,
    Task,
    index_in,
    records_of,
    text_in,
    text_of,
    texts_in,
)

# ---- a generated answer is right or wrong ----


class _Exact(Task):
    """The answer equals the reference, in one spelling."""

    metric = "exact match"

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        return float(answer == example.references[0] != "")


class GSM8K(_Exact):
    """Grade-school problems: the number after `####`, else the last one in the text."""

    name = "gsm8k"
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


def _number(text: str, last: bool = False) -> str:
    """The first or last number of a text in one spelling: `$1,234.50` -> `1234.5`; empty if there is none."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not numbers:
        return ""
    number = numbers[-1 if last else 0].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


class Math(_Exact):
    r"""Competition problems: the content of the last `\boxed{}`, its LaTeX normalised in a simple way."""

    name = "math"
    ask = "\n\nThink step by step. Put the final answer in \\boxed{}."

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        prompt, final = text_in(record, "problem") + self.ask, _plain_latex(text_in(record, "answer"))
        return Example(id, "math", prompt, text_in(record, "solution"), references=(final,))

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        return _plain_latex(_boxed(text))


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


# ---- generated programs, which are run ----


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

    def program(self, example: Example, answer: str) -> str:
        """See `Task.program`: the answer continues the prompt."""
        return super().program(example, example.prompt + answer)


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


# ---- a generated answer to a long text, compared with references ----


class LongBench(Task):
    """Long texts: F1 of words (characters in Chinese) for questions, ROUGE-L for summaries; the best reference counts.

    Simple versions, without stemming and segmentation: they do not compare with published figures.
    """

    name, metric, accuracy = "longbench", "F1 or ROUGE-L", False
    summaries = ("gov_report", "qmsum", "multi_news", "vcsum", "samsum")
    prompts = {
        "multi_news": "You are given several news passages. Write a one-page summary of all news.\n\nNews:\n{context}"
        "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        "multifieldqa_zh": "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，"
        "只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
    }
    any_prompt = "Read the following text and answer briefly.\n\n{context}\n\n{input}\nAnswer:"

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        dataset, answers = text_in(record, "dataset"), texts_in(record, "answers")
        prompt = self.prompts.get(dataset, self.any_prompt)
        for field in ("context", "input"):  # not by format(): the texts may hold braces
            prompt = prompt.replace(f"{{{field}}}", text_in(record, field, may_be_empty=field == "input"))
        return Example(id, dataset, prompt, answers[0], references=answers)

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        measure = rouge_l if example.part in self.summaries else overlap_f1
        return max(measure(_words(answer), _words(reference)) for reference in example.references)


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation; each Chinese, Japanese or Thai character is one."""
    return re.findall(
        r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+", text.lower()
    )


def overlap_f1(ours: list[str], gold: list[str]) -> float:
    """F1 of the words in common, each counted as often as both have it."""
    return _f1(sum((Counter(ours) & Counter(gold)).values()), len(ours), len(gold))


def rouge_l(ours: list[str], gold: list[str]) -> float:
    """F1 of the longest common subsequence."""
    lengths = [0] * (len(gold) + 1)
    for word in ours:
        before = 0  # the cell above and one to the left
        for j, other in enumerate(gold, start=1):
            above = lengths[j]
            lengths[j] = before + 1 if word == other else max(lengths[j], lengths[j - 1])
            before = above
    return _f1(lengths[-1], len(ours), len(gold))


def _f1(common: int, ours: int, gold: int) -> float:
    return 2 * common / (ours + gold) if common else 0.0


# ---- the likeliest choice ----


class HellaSwag(Task):
    """Which of four endings continues the text."""

    name, chance = "hellaswag", 0.25

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        choices = tuple(f" {ending}" for ending in texts_in(record, "endings"))
        gold = choices[index_in(record, "label", len(choices))]
        return Example(id, "hellaswag", text_in(record, "ctx"), gold, chat=False, choices=choices)


class XCOPA(Task):
    """Which of two sentences is the cause or the effect, joined by a word of the language, as in lm-eval."""

    name, chance, parallel = "xcopa", 0.5, True
    patterns = ("test.*.jsonl", "*.jsonl")  # validation files only where there are no others
    joints = {
        "en": ("because", "therefore"),
        "et": ("sest", "seetõttu"),
        "ht": ("poukisa", "donk sa"),
        "id": ("karena", "maka"),
        "it": ("perché", "quindi"),
        "qu": ("imataq", "chaymi"),
        "sw": ("kwa sababu", "kwa hiyo"),
        "ta": ("காரணமாக", "எனவே"),
        "th": ("เพราะ", "ดังนั้น"),
        "tr": ("çünkü", "bu yüzden"),
        "vi": ("bởi vì", "vì vậy"),
        "zh": ("因为", "所以"),
    }

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        language = _language(path)
        question = record.get("question")
        if question not in ("cause", "effect"):
            raise BrokenRecord("the field 'question' is neither cause nor effect")
        joint = self.joints.get(language, self.joints["en"])[question == "effect"]
        premise = text_in(record, "premise").strip().rstrip(".。")
        options = (text_in(record, name) for name in ("choice1", "choice2"))
        choices = tuple(f" {option[0].lower()}{option[1:]}" for option in options)
        gold = choices[index_in(record, "label", 2)]
        return Example(id, language, f"{premise} {joint}", gold, chat=False, choices=choices)


class XNLI(Task):
    """Entailment, neutral or contradiction: the word that makes `premise, right? WORD, hypothesis` likeliest, as in
    lm-eval. Languages without words here use the English ones."""

    name, chance, parallel = "xnli", 1 / 3, True
    patterns = ("*.tsv",)
    labels = ("entailment", "neutral", "contradiction")
    words = {
        "en": ("right", "Yes", "Also", "No"),
        "sw": ("sahihi", "Ndiyo", "Hivyo", "Hapana"),
        "ur": ("صحیح", "جی ہاں", "اس لئے", "نہیں"),
    }

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        language = _language(path)
        question, *answers = self.words.get(language, self.words["en"])
        label = record.get("label")
        if label not in self.labels:
            raise BrokenRecord(f"the field 'label' is none of {', '.join(self.labels)}")
        hypothesis = text_in(record, "sentence2")
        choices = tuple(f" {answer}, {hypothesis}" for answer in answers)
        gold = choices[self.labels.index(label)]
        prompt = f"{text_in(record, 'sentence1')}, {question}?"
        return Example(id, language, prompt, gold, chat=False, choices=choices)


def _language(path: Path) -> str:
    """`test.sw.000-249.jsonl` -> sw."""
    return path.name.split(".")[1]


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
