"""The paper's nine tasks for lm-eval: reads their local files, and scores answers. The YAML files beside it name them.

A data folder has a folder a task, with the files as their publishers wrote them: `gsm8k/*.jsonl`, `math/*.jsonl`,
`bbh/*.json` and `bbh/cot-prompts/*.txt`, `humaneval/*.jsonl`, `mbpp/*.jsonl`, `longbench/*.jsonl`, `xnli/*.tsv`,
`xcopa/*.jsonl`, `hellaswag/*.jsonl`.

Each record becomes a document: its `id` (file and line), its `part` (language, subtask or dataset), the `prompt`, the
gold text that should follow (`target`), and `choices`, or `reference`, `references` or `tests` of a generated answer.
A space, which lm-eval's `acc_norm` does not count, comes between the prompt and a choice.
A broken record is reported once, with its file and number, and left out. lm-eval's tasks of these names fetch their
data.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_drop.errors import LoraDropError

TASKS = ("gsm8k", "math", "bbh", "humaneval", "mbpp", "longbench", "xnli", "xcopa", "hellaswag")

Doc = dict[str, Any]
Record = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """A benchmark's options, beside model and schedule.

    Args:
        tasks: of `TASKS`; None takes those that the data folder has.
        limit: records a task; None takes all.
        run_code: run generated programs in a sandbox; without it code tasks have no score.
        max_new_tokens: of a generated answer.
        context_tokens: most tokens of a prompt, a longer one loses its middle; None is the model's context.

    Raises:
        LoraDropError: a number is too small, an unknown task, or no such folder.
    """

    data_dir: Path
    out: Path
    tasks: tuple[str, ...] | None = None
    limit: int | None = None
    run_code: bool = False
    max_new_tokens: int = 256
    context_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("max_new_tokens", 1), ("context_tokens", 16)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LoraDropError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")
        if unknown := [name for name in self.tasks or () if name not in TASKS]:
            raise LoraDropError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
        if not self.data_dir.is_dir():
            raise LoraDropError(
                f"there is no folder {self.data_dir}: --data-dir names the one that holds gsm8k/, bbh/ and so on."
            )
        if not self.names:
            raise LoraDropError(f"{self.data_dir.name} holds none of the tasks' folders: {', '.join(TASKS)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks to run."""
        if self.tasks is not None:
            return tuple(dict.fromkeys(self.tasks))
        return tuple(name for name in TASKS if any((self.data_dir / name).glob("*")))


class BrokenRecord(ValueError):
    """A record that lacks something that its task needs."""


def read(
    name: str,
    data_dir: str | Path,
    patterns: Sequence[str] = ("*.jsonl",),
    parallel: bool = False,
    words: dict[str, Any] | None = None,
    limit: int | None = None,
    say: Say = lambda line: print(f"note: {line}", file=sys.stderr),
    **metadata: Any,
) -> dict[str, Any]:
    """Read a task's documents, one of each file in turn, so that a limit takes from every language and subtask.

    Args:
        name: of the task.
        data_dir: the folder with a folder a task.
        patterns: of the files' names; the first one that any file matches counts.
        parallel: the files hold the same records in several languages: each file begins elsewhere.
        words: of the task's prompts, by language or dataset.
        limit: documents at most; None takes all.
        say: called with one line for each broken record or file.
        metadata: the rest of what lm-eval passes, unused.

    Returns:
        The split `test`, as lm-eval's `custom_dataset`.

    Raises:
        LoraDropError: there is no file, or no readable record in them.
    """
    from datasets import Dataset

    data_dir = Path(data_dir)
    matches = (sorted((data_dir / name).glob(pattern)) for pattern in patterns)
    files: list[Path] = next(filter(None, matches), [])
    if not files:
        raise LoraDropError(f"{name}: there is no {name}/{patterns[0]} in {data_dir.name or '.'}.")
    columns = [list(_documents(name, path, words, say)) for path in files]
    if parallel:  # a limit then asks different records in each language
        count = len(columns)
        columns = [
            [doc for shift in range(count) for doc in column[(k + shift) % count :: count]]
            for k, column in enumerate(columns)
        ]
    docs = [doc for doc in chain.from_iterable(zip_longest(*columns)) if doc is not None]
    if not docs:
        raise LoraDropError(f"{name}: its files hold no record that can be read.")
    return {"test": Dataset.from_list(docs[:limit])}


def _documents(name: str, path: Path, words: dict[str, Any] | None, say: Say) -> Iterator[Doc]:
    """The documents of one file."""
    make: Callable[..., Doc | None] = partial(_MAKERS[name], words=words) if words else _MAKERS[name]
    label = f"{name}/{path.name}"
    unit = "example" if path.suffix == ".json" else "line"
    shots = _SHOTS[name](path, say) if name in _SHOTS else ""
    for number, row, header in _rows_of(path, label, say):
        try:
            doc = make(_record(row, header), path)
        except BrokenRecord as error:
            say(f"{label}, {unit} {number}: {error}; left out.")
            continue
        if doc is not None:
            yield {"id": f"{label}:{number}", "part": name, **doc, "prompt": shots + doc["prompt"]}


# ---- files ----


def _text_of(path: Path, label: str, say: Say) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        say(f"{label}: cannot be read ({error.strerror or error}); left out.")
    except UnicodeDecodeError:
        say(f"{label}: this is not UTF-8 text; left out.")
    return ""


def _rows_of(path: Path, label: str, say: Say) -> Iterator[tuple[int, Any, list[str] | None]]:
    """(number, row, header) of a file: a JSON file's list `examples`, or the lines of a JSONL or TSV file; only a TSV
    file has a header."""
    text = _text_of(path, label, say)
    if path.suffix == ".json":
        content = _json(text)
        examples = content.get("examples") if isinstance(content, dict) else None
        if isinstance(examples, list):
            yield from ((number, row, None) for number, row in enumerate(examples, start=1))
        elif text:
            say(f"{label}: this is no JSON object with a list of examples; left out.")
        return
    lines = enumerate(text.split("\n"), start=1)
    header = next(lines)[1].split("\t") if path.suffix == ".tsv" else None
    yield from ((number, line, header) for number, line in lines if line.strip())


def _record(row: Any, header: list[str] | None) -> Record:
    """A row of a file as a record. Raises BrokenRecord: it is none."""
    if header:
        cells = row.rstrip("\r").split("\t")
        if len(cells) != len(header):
            raise BrokenRecord(f"{len(cells)} cells under {len(header)} headings")
        return dict(zip(header, cells, strict=True))
    record = _json(row) if isinstance(row, str) else row
    if not isinstance(record, dict):
        raise BrokenRecord("this is not a JSON object")
    return record


def _json(text: str) -> Any:
    """A text's content; None if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text_in(record: Record, field: str, may_be_empty: bool = False) -> str:
    """The text in a field, without lone surrogates. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise BrokenRecord(f"there is no text in a field {field!r}")
    return _encodable(value)


def _texts_in(record: Record, field: str) -> list[str]:
    """The texts in a field that holds a list of them. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise BrokenRecord(f"there is no list of texts in a field {field!r}")
    return [_encodable(text) for text in value]


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _index_in(record: Record, field: str, count: int) -> int:
    """The number in a field, from 0 to `count` - 1. Raises BrokenRecord: there is none."""
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise BrokenRecord(f"the field {field!r} is no number from 0 to {count - 1}")
    return value


# ---- from a record to a document ----


def _gsm8k(record: Record, path: Path) -> Doc:
    """Grade-school problems. The gold answer loses its calculator marks."""
    answer = re.sub(r"<<.*?>>", "", _text_in(record, "answer"))
    final = _number(answer.rpartition("####")[2]) if "####" in answer else ""
    if not final:
        raise BrokenRecord("the answer has no number after ####")
    ask = "\n\nThink step by step. End with a line that has only #### and the number."
    return {"prompt": _text_in(record, "question") + ask, "target": answer, "reference": final}


def _math(record: Record, path: Path) -> Doc:
    """Competition problems."""
    ask = "\n\nThink step by step. Put the final answer in \\boxed{}."
    prompt, final = _text_in(record, "problem") + ask, _plain_latex(_text_in(record, "answer"))
    return {"prompt": prompt, "target": _text_in(record, "solution"), "reference": final}


def _bbh(record: Record, path: Path) -> Doc:
    """BIG-Bench Hard. The gold text is the closing sentence alone: the files have no worked answers."""
    question, target = _text_in(record, "input"), _text_in(record, "target").strip()
    prompt = f"Q: {question}\nA: Let's think step by step."
    return {"part": path.stem, "prompt": prompt, "target": f"So the answer is {target}.", "reference": target}


def _bbh_shots(path: Path, say: Say) -> str:
    """The publishers' three worked examples."""
    file = path.parent / "cot-prompts" / f"{path.stem}.txt"
    if not file.is_file():
        return ""
    text = _text_of(file, f"bbh/cot-prompts/{file.name}", say)
    shots = text.partition("-----\n")[2].strip() or text.strip()  # without the publishers' note
    return shots and f"{shots}\n\n"


def _humaneval(record: Record, path: Path) -> Doc:
    """Functions by their docstring. The line break begins the solution: tokenizers join it with the indentation."""
    prompt, solution = _text_in(record, "prompt").rstrip(), "\n" + _text_in(record, "canonical_solution")
    tests = f"{_text_in(record, 'test')}\n\ncheck({_text_in(record, 'entry_point')})"
    return {"prompt": prompt, "target": solution, "tests": tests, "head": prompt}


def _mbpp(record: Record, path: Path) -> Doc | None:
    """Small programs by a sentence and three tests; the test split alone."""
    if record.get("task_id") not in range(11, 511):
        return None
    tests = "\n".join([_text_in(record, "test_setup_code", may_be_empty=True), *_texts_in(record, "test_list")])
    return {"prompt": _mbpp_question(record), "target": f"{_mbpp_code(record)}\n[DONE]", "tests": tests, "head": ""}


def _mbpp_shots(path: Path, say: Say) -> str:
    """The publishers' three shots (tasks 2, 3 and 4), if the data has them."""
    shots: dict[int, str] = {}
    for other in sorted(path.parent.glob("*.jsonl")):
        # Silently: broken lines are reported when their own file is read.
        for _, row, header in _rows_of(other, other.name, lambda line: None):
            with suppress(BrokenRecord):
                record = _record(row, header)
                if record.get("task_id") in (2, 3, 4):
                    shots[record["task_id"]] = f"{_mbpp_question(record)}{_mbpp_code(record)}\n[DONE]\n\n"
    return "".join(text for _, text in sorted(shots.items()))


def _mbpp_question(record: Record) -> str:
    tests = "\n".join(_texts_in(record, "test_list"))
    return (
        f"You are an expert Python programmer, and here is your task: {_text_in(record, 'text')} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _mbpp_code(record: Record) -> str:
    return _text_in(record, "code").replace("\r\n", "\n").strip()


def _longbench(record: Record, path: Path, words: dict[str, str]) -> Doc:
    """Questions about long texts, and summaries of them."""
    dataset, answers = _text_in(record, "dataset"), _texts_in(record, "answers")
    prompt = words.get(dataset, words["any"])
    for field in ("context", "input"):  # not by format(): the texts may hold braces
        prompt = prompt.replace(f"{{{field}}}", _text_in(record, field, may_be_empty=field == "input"))
    return {"part": dataset, "prompt": prompt, "target": answers[0], "references": answers}


def _hellaswag(record: Record, path: Path) -> Doc:
    """Which of four endings continues the text."""
    choices = _texts_in(record, "endings")
    gold = choices[_index_in(record, "label", len(choices))]
    return {"prompt": _text_in(record, "ctx"), "target": gold, "choices": choices}


def _xcopa(record: Record, path: Path, words: dict[str, list[str]]) -> Doc:
    """Which of two sentences is the cause or the effect, joined by a word of the language, as in lm-eval."""
    language = _language(path)
    question = record.get("question")
    if question not in ("cause", "effect"):
        raise BrokenRecord("the field 'question' is neither cause nor effect")
    joint = words.get(language, words["en"])[question == "effect"]
    premise = _text_in(record, "premise").strip().rstrip(".。")
    options = (_text_in(record, name) for name in ("choice1", "choice2"))
    choices = [f"{option[0].lower()}{option[1:]}" for option in options]
    gold = choices[_index_in(record, "label", 2)]
    return {"part": language, "prompt": f"{premise} {joint}", "target": gold, "choices": choices}


XNLI_LABELS = ("entailment", "neutral", "contradiction")


def _xnli(record: Record, path: Path, words: dict[str, list[str]]) -> Doc:
    """The word that makes `premise, right? WORD, hypothesis` likeliest, as in lm-eval."""
    language = _language(path)
    question, *answers = words.get(language, words["en"])
    label = record.get("label")
    if label not in XNLI_LABELS:
        raise BrokenRecord(f"the field 'label' is none of {', '.join(XNLI_LABELS)}")
    hypothesis = _text_in(record, "sentence2")
    choices = [f"{answer}, {hypothesis}" for answer in answers]
    gold = choices[XNLI_LABELS.index(label)]
    return {
        "part": language,
        "prompt": f"{_text_in(record, 'sentence1')}, {question}?",
        "target": gold,
        "choices": choices,
    }


def _language(path: Path) -> str:
    """`test.sw.000-249.jsonl` -> sw."""
    return path.name.split(".")[1]


_MAKERS: dict[str, Callable[..., Doc | None]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "bbh": _bbh,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "longbench": _longbench,
    "xnli": _xnli,
    "xcopa": _xcopa,
    "hellaswag": _hellaswag,
}
_SHOTS = {"bbh": _bbh_shots, "mbpp": _mbpp_shots}  # a text before each prompt of a file


# ---- the answer in a generated text: lm-eval's filters ----


def _filter(extract: Callable[[str], str]) -> Callable[[Iterable[list[str]], Any], list[list[str]]]:
    """A filter of lm-eval that takes the answer out of each text."""
    return lambda responses, docs: [[extract(text) for text in texts] for texts in responses]


def _gsm8k_answer(text: str) -> str:
    """The number after `####`, else the last one in the text."""
    return _number(text.split("####", 1)[1] if "####" in text else text, last="####" not in text)


def _number(text: str, last: bool = False) -> str:
    """The first or last number of a text in one spelling: `$1,234.50` -> `1234.5`; empty if there is none."""
    numbers: list[str] = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not numbers:
        return ""
    number = numbers[-1 if last else 0].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def _boxed(text: str) -> str:
    r"""The content of the last `\boxed{}`, its own braces included; empty without one."""
    _, box, rest = text.rpartition("\\boxed{")
    depth = 0
    for at, letter in enumerate(rest if box else ""):
        if letter == "}" and depth == 0:
            return rest[:at]
        depth += {"{": 1, "}": -1}.get(letter, 0)
    return ""


def _plain_latex(text: str) -> str:
    """A LaTeX answer without spaces, sizes, \\text and a closing stop, which do not change it."""
    text = re.sub(r"\\(?:left|right|!|,|;|:|\s|displaystyle)(?![a-z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|\\%|%|\\\$|\$", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    return re.sub(r"\s+", "", text).rstrip(".")


def _bbh_answer(text: str) -> str:
    """The text after `the answer is`."""
    ending = re.search(r"answer is:?\s*(.+)", text)
    return ending[1].strip().removesuffix(".").strip().strip('"*') if ending else ""


number = _filter(_gsm8k_answer)
boxed = _filter(lambda text: _plain_latex(_boxed(text)))
after_answer_is = _filter(_bbh_answer)
without_end = _filter(str.rstrip)  # a program's indentation is part of it


# ---- the score of an answer: lm-eval's process_results ----


def best_overlap(doc: Doc, answers: list[str]) -> dict[str, float]:
    """F1 of words (characters in Chinese), ROUGE-L for summaries; the best reference counts.

    Simple versions, without stemming and segmentation: they do not compare with published figures.
    """
    is_summary = doc["part"] in ("gov_report", "qmsum", "multi_news", "vcsum", "samsum")
    measure = rouge_l if is_summary else overlap_f1
    return {"overlap": max(measure(answers[0], reference) for reference in doc["references"])}


def passes(doc: Doc, answers: list[str]) -> dict[str, float | str]:
    """1 if the program passes its tests in the sandbox, and the reason if it does not."""
    from lora_drop.evaluation.tasks.sandbox import run_program

    outcome = run_program(f"{doc['head']}{answers[0]}\n\n{doc['tests']}\n")
    return {"pass@1": float(outcome.passed), "failures": outcome.reason}


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation; each Chinese, Japanese or Thai character is one."""
    return re.findall(
        r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+", text.lower()
    )


def overlap_f1(answer: str, reference: str) -> float:
    """F1 of the words in common, each counted as often as both have it."""
    ours, gold = _words(answer), _words(reference)
    common = (Counter(ours) & Counter(gold)).total()
    return 2 * common / (len(ours) + len(gold)) if common else 0.0


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, by the package that lm-eval uses."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=_words))
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)
