"""The paper's benchmarks from local files: how each is read, asked and scored.

A data folder has a folder a task, with the files as their publishers wrote them: `gsm8k/*.jsonl`, `math/*.jsonl`,
`bbh/*.json` and `bbh/cot-prompts/*.txt`, `humaneval/*.jsonl`, `mbpp/*.jsonl`, `longbench/*.jsonl`, `xnli/*.tsv`,
`xcopa/*.jsonl`, `hellaswag/*.jsonl`. A broken line is told once, with its file and number, and left out.

Each record becomes an `Example`: a prompt, the gold text that should follow, and either choices or what a generated
answer is compared with. The prompts are zero-shot unless a task says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """One record of a benchmark, ready to be asked.

    Args:
        id: file and line within the data folder.
        part: what the record is of: a language, a subtask, a dataset.
        prompt: what is asked.
        target: the gold text that follows the prompt.
        chat: the prompt is a user's message for the chat template; else it is plain text to be continued.
        choices: texts that may follow, the target among them; empty where the answer is generated.
        references: what a generated answer is compared with.
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
        """16 hex digits of all that it asks and expects."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:16]


class _BrokenRecord(ValueError):
    """A record that does not have what its task needs."""


class Task:
    """A benchmark.

    `metric` is what `score` gives; `chance` what guessing would; `accuracy` says whether a score is right or wrong, or
    a share. `runs_code` marks those that are scored by running what was generated, `parallel` those whose files hold
    the same records in several languages.
    """

    name: str
    metric = "accuracy"
    chance: float | None = None
    accuracy = True
    runs_code = False
    parallel = False
    patterns: tuple[str, ...] = ("*.jsonl",)  # the first one that any file matches

    def read(self, data_dir: Path, tell: Tell) -> list[Example]:
        """All examples, one of each file in turn, so that a limit takes from every language and subtask.

        Args:
            tell: called with one line for each broken line or file, which is left out.

        Raises:
            LoraDropError: there is no file, or no readable record in them.
        """
        files = self.files(data_dir)
        if not files:
            raise LoraDropError(f"{self.name}: there is no {self.name}/{self.patterns[0]} in {data_dir.name or '.'}.")
        columns = [list(self.read_file(path, f"{self.name}/{path.name}", tell)) for path in files]
        if self.parallel:  # or a limit would ask the same few records in each language
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
        found = ([*sorted((data_dir / self.name).glob(pattern))] for pattern in self.patterns)
        return next(filter(None, found), [])

    def read_file(self, path: Path, name: str, tell: Tell) -> Iterator[Example]:
        """The examples of one file."""
        for number, record in _records(path, name, tell):
            where = f"{name}, line {number}"
            try:
                example = self.example(record, f"{name}:{number}", path)
            except _BrokenRecord as error:
                tell(f"{where}: {error}; left out.")
                continue
            if example is not None:
                yield example

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example | None:
        """One record; None if it is not one to be asked. Each task has this, or a `read_file` of its own."""
        raise NotImplementedError(f"{self.name} reads whole files, not records")

    def answer(self, example: Example, text: str) -> str:
        """What a generated text answers."""
        return text.strip()

    def score(self, example: Example, answer: str) -> float:
        """From 0 to 1: how good an answer is. Each task has this, or `runs_code`: then its program is the judge."""
        raise NotImplementedError(f"{self.name} is scored by running what was generated")


# ---- reading --------------------------------------------------------------------------------------------------------


def _text_of(path: Path, name: str, tell: Tell) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        tell(f"{name}: cannot be read ({error.strerror or error}); left out.")
    except UnicodeDecodeError:
        tell(f"{name}: this is not UTF-8 text; left out.")
    return ""


def _records(path: Path, name: str, tell: Tell) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a JSONL file, or of a TSV file with a header."""
    lines = enumerate(_text_of(path, name, tell).split("\n"), start=1)
    header = next(lines)[1].split("\t") if path.suffix == ".tsv" else None
    for number, line in lines:
        if not line.strip():
            continue
        if header is not None:
            cells = line.rstrip("\r").split("\t")
            if len(cells) != len(header):
                tell(f"{name}, line {number}: {len(cells)} cells under {len(header)} headings; left out.")
                continue
            yield number, dict(zip(header, cells, strict=True))
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
        except (ValueError, RecursionError):
            tell(f"{name}, line {number}: this is not a JSON object; left out.")
            continue
        yield number, record


def _text(record: dict[str, Any], field: str, may_be_empty: bool = False) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise _BrokenRecord(f"there is no text in a field {field!r}")
    return value


def _texts(record: dict[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise _BrokenRecord(f"there is no list of texts in a field {field!r}")
    return tuple(value)


def _index(record: dict[str, Any], field: str, count: int) -> int:
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise _BrokenRecord(f"the field {field!r} is no number from 0 to {count - 1}")
    return value


# ---- choices --------------------------------------------------------------------------------------------------------


class HellaSwag(Task):
    """Which of four endings goes on with the text."""

    name, chance = "hellaswag", 0.25

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        choices = tuple(f" {ending}" for ending in _texts(record, "endings"))
        gold = choices[_index(record, "label", len(choices))]
        return Example(id, "hellaswag", _text(record, "ctx"), gold, chat=False, choices=choices)


class XCOPA(Task):
    """Which of two sentences is the cause or the effect, joined by the language's own word, as in lm-eval."""

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
            raise _BrokenRecord("the field 'question' is neither cause nor effect")
        joint = self.joints.get(language, self.joints["en"])[question == "effect"]
        premise = _text(record, "premise").strip().rstrip(".。")
        options = (_text(record, name) for name in ("choice1", "choice2"))
        choices = tuple(f" {option[0].lower()}{option[1:]}" for option in options)
        gold = choices[_index(record, "label", 2)]
        return Example(id, language, f"{premise} {joint}", gold, chat=False, choices=choices)


class XNLI(Task):
    """Entailment, neutral or contradiction: which word makes `premise, right? WORD, hypothesis` likeliest, as in
    lm-eval. Languages without words of their own here get the English ones."""

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
            raise _BrokenRecord(f"the field 'label' is none of {', '.join(self.labels)}")
        hypothesis = _text(record, "sentence2")
        choices = tuple(f" {answer}, {hypothesis}" for answer in answers)
        gold = choices[self.labels.index(label)]
        prompt = f"{_text(record, 'sentence1')}, {question}?"
        return Example(id, language, prompt, gold, chat=False, choices=choices)


def _language(path: Path) -> str:
    """`test.sw.000-249.jsonl` -> sw."""
    return path.name.split(".")[1]


# ---- generated answers ----------------------------------------------------------------------------------------------


class GSM8K(Task):
    """Grade-school problems: the number after `####`, else the last one in the text."""

    name, metric = "gsm8k", "exact match"
    ask = "\n\nThink step by step. End with a line that has only #### and the number."

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`. The calculator's marks are taken out of the gold answer."""
        answer = re.sub(r"<<.*?>>", "", _text(record, "answer"))
        if "####" not in answer:
            raise _BrokenRecord("the answer has no ####")
        final = _number(answer.rsplit("####", 1)[1])
        return Example(id, "gsm8k", _text(record, "question") + self.ask, answer, references=(final,))

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        return _number(text.split("####", 1)[1] if "####" in text else text, last="####" not in text)

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        return float(answer == example.references[0] != "")


def _number(text: str, last: bool = False) -> str:
    """The first (or last) number of a text in one spelling: `$1,234.50` -> `1234.5`; empty if there is none."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not found:
        return ""
    number = found[-1 if last else 0].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


class Math(Task):
    r"""Competition problems: what the last `\boxed{}` holds, equal after a simple normalisation of its LaTeX."""

    name, metric = "math", "exact match"
    ask = "\n\nThink step by step. Put the final answer in \\boxed{}."

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        references = (_plain_latex(_text(record, "answer")),)
        return Example(
            id, "math", _text(record, "problem") + self.ask, _text(record, "solution"), references=references
        )

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        return _plain_latex(_boxed(text))

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        return float(answer == example.references[0] != "")


def _boxed(text: str) -> str:
    r"""What the last `\boxed{}` holds, its own braces kept; empty without one."""
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
    """A LaTeX answer without what does not change it: spaces, sizes, units in \\text, a closing stop."""
    text = re.sub(r"\\(?:left|right|!|,|;|:|\s|displaystyle)(?![a-z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|\\%|%|\\\$|\$", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    return re.sub(r"\s+", "", text).rstrip(".")


class BBH(Task):
    """BIG-Bench Hard: the publishers' three worked examples, then what follows `the answer is`, compared exactly.

    The gold text that is teacher-forced is the closing sentence alone: there is no worked answer in the files.
    """

    name, metric = "bbh", "exact match"
    patterns = ("*.json",)

    def read_file(self, path: Path, name: str, tell: Tell) -> Iterator[Example]:
        """See `Task.read_file`."""
        shots = ""
        prompt_file = path.parent / "cot-prompts" / f"{path.stem}.txt"
        if prompt_file.is_file():
            text = _text_of(prompt_file, f"{self.name}/cot-prompts/{prompt_file.name}", tell)
            shots = text.partition("-----\n")[2].strip() or text.strip()  # without the note to those who train
        text = _text_of(path, name, tell)
        if not text:
            return
        try:
            examples = json.loads(text)["examples"]
            if not isinstance(examples, list):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            tell(f"{name}: this is no JSON object with a list of examples; left out.")
            return
        for number, record in enumerate(examples, start=1):
            try:
                if not isinstance(record, dict):
                    raise _BrokenRecord("this is not an object")
                question, target = _text(record, "input"), _text(record, "target").strip()
            except _BrokenRecord as error:
                tell(f"{name}, example {number}: {error}; left out.")
                continue
            prompt = f"{shots}\n\nQ: {question}\nA: Let's think step by step.".strip()
            sentence = f"So the answer is {target}."
            stop = ("\nQ:",)
            yield Example(f"{name}:{number}", path.stem, prompt, sentence, references=(target,), stop=stop)

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`."""
        found = re.search(r"answer is:?\s*(.+)", text)
        return found[1].strip().removesuffix(".").strip().strip('"*') if found else ""

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        return float(answer.lower() == example.references[0].lower())


class LongBench(Task):
    """Long texts: F1 of words (characters in Chinese) for questions, ROUGE-L of them for summaries; the best over the
    references. Simple versions: no stemming and no segmentation, so they do not compare with published figures."""

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
        dataset, answers = _text(record, "dataset"), _texts(record, "answers")
        prompt = self.prompts.get(dataset, self.any_prompt)
        for field in ("context", "input"):  # not by format(): the texts may hold braces
            prompt = prompt.replace(f"{{{field}}}", _text(record, field, may_be_empty=field == "input"))
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
    """F1 of the words in common, each as often as it is in both."""
    return _f1(sum((Counter(ours) & Counter(gold)).values()), len(ours), len(gold))


def rouge_l(ours: list[str], gold: list[str]) -> float:
    """F1 of the longest common subsequence."""
    lengths = [0] * (len(gold) + 1)
    for word in ours:
        before = 0  # of the row above, one to the left
        for j, other in enumerate(gold, start=1):
            kept = lengths[j]
            lengths[j] = before + 1 if word == other else max(lengths[j], lengths[j - 1])
            before = kept
    return _f1(lengths[-1], len(ours), len(gold))


def _f1(common: int, ours: int, gold: int) -> float:
    return 2 * common / (ours + gold) if common else 0.0


# ---- programs -------------------------------------------------------------------------------------------------------


class HumanEval(Task):
    """Functions by their docstring: pass@1 of the greedy continuation, by running the record's tests."""

    name, metric, runs_code = "humaneval", "pass@1", True
    stop = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\n```")

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        # The line's end belongs to what follows: tokenizers join it with the indentation.
        prompt, solution = _text(record, "prompt").rstrip(), "\n" + _text(record, "canonical_solution")
        tests = f"{_text(record, 'test')}\n\ncheck({_text(record, 'entry_point')})"
        return Example(id, "humaneval", prompt, solution, chat=False, stop=self.stop, tests=tests)

    def answer(self, example: Example, text: str) -> str:
        """See `Task.answer`: its indentation is part of it."""
        return text.rstrip()


class MBPP(Task):
    """Small programs by a sentence and three tests: pass@1, after the publishers' three-shot prompt where the data has
    its tasks (2, 3 and 4), else with none. Only the test split is asked (task_id 11 to 510)."""

    name, metric, runs_code = "mbpp", "pass@1", True
    shots, split = (2, 3, 4), range(11, 511)

    def read_file(self, path: Path, name: str, tell: Tell) -> Iterator[Example]:
        """See `Task.read_file`."""
        shown: dict[int, str] = {}
        for other in self.files(path.parent.parent):
            for _, record in _records(other, other.name, lambda line: None):  # each file's turn to be told of comes
                if record.get("task_id") in self.shots:
                    with suppress(_BrokenRecord):
                        shown[record["task_id"]] = f"{self._ask(record)}{self._code(record)}\n[DONE]\n\n"
        before = "".join(text for _, text in sorted(shown.items()))
        for example in super().read_file(path, name, tell):
            yield replace(example, prompt=before + example.prompt)

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example | None:
        """See `Task.example`."""
        if record.get("task_id") not in self.split:
            return None
        tests = "\n".join([_text(record, "test_setup_code", may_be_empty=True), *_texts(record, "test_list")])
        target = f"{self._code(record)}\n[DONE]"
        return Example(id, "mbpp", self._ask(record), target, chat=False, stop=("[DONE]", "\n```\n"), tests=tests)

    @staticmethod
    def _ask(record: dict[str, Any]) -> str:
        tests = "\n".join(_texts(record, "test_list"))
        return (
            f"You are an expert Python programmer, and here is your task: {_text(record, 'text')} "
            f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        )

    @staticmethod
    def _code(record: dict[str, Any]) -> str:
        return _text(record, "code").replace("\r\n", "\n").strip()


def program(task: Task, example: Example, answer: str) -> str:
    """A generated answer with the tests that it has to pass, as one program."""
    start = example.prompt if isinstance(task, HumanEval) else ""
    return f"{start}{answer}\n\n{example.tests}\n"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (GSM8K(), Math(), BBH(), HumanEval(), MBPP(), LongBench(), XNLI(), XCOPA(), HellaSwag())
}


def read_tasks(
    data_dir: Path, names: Iterable[str] | None, limit: int | None, tell: Tell
) -> list[tuple[Task, list[Example]]]:
    """The tasks and their examples.

    Args:
        names: of `TASKS`; None takes those that the folder has.
        limit: examples a task; None takes all.
        tell: called with one line for what is broken and left out.

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
    found = [TASKS[name] for name in chosen if names is not None or TASKS[name].files(data_dir)]
    if not found:
        raise LoraDropError(f"{data_dir.name} holds none of the tasks' folders: {', '.join(TASKS)}.")
    return [(task, task.read(data_dir, tell)[:limit]) for task in found]
