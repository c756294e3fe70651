"""The benchmarks' files as they are published, with a record or two each."""

import json
from pathlib import Path

import pytest

COPA = {"premise": "Avevo fame.", "choice1": "Mangiai.", "choice2": "Dormii.", "question": "effect", "label": 0}
HUMAN = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}
LONG = {
    "input": "Who?",
    "context": "A {text} of Ann.",
    "answers": ["Ann.", "Ann B."],
    "dataset": "qa",
    "language": "en",
}


def mbpp(number, **changes):
    tests = [f"assert f{number}() == {number}"]
    record = {"text": f"Write f{number}.", "code": f"def f{number}():\r\n    return {number}", "task_id": number}
    return record | {"test_setup_code": "", "test_list": tests} | changes


RECORDS = {
    "gsm8k/test.jsonl": [{"question": "1+1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 1,002"}],
    "math/m.jsonl": [{"problem": "Half?", "solution": "So $\\boxed{\\dfrac{1}{2}}$.", "answer": "\\frac{1}{2}"}],
    "humaneval/h.jsonl": [HUMAN],
    "mbpp/prompt.jsonl": [mbpp(1), mbpp(2), mbpp(3)],
    "mbpp/test.jsonl": [mbpp(11), mbpp(12)],
    "mbpp/train.jsonl": [mbpp(700)],
    "longbench/qa.jsonl": [LONG, LONG | {"dataset": "multi_news", "input": "", "answers": ["one two three"]}],
    "xcopa/test.it.jsonl": [COPA, COPA | {"question": "cause", "label": 1}],
    "xcopa/val.it.jsonl": [COPA],
    "hellaswag/v.jsonl": [{"ctx": "A man", "endings": ["sits.", "is.", "has.", "runs."], "label": 3}],
}


@pytest.fixture
def task_data(tmp_path):
    """A data folder with a record or two a task."""
    return write_task_files(tmp_path)


def write_task_files(folder: Path) -> Path:
    """Write a record or two a task; returns the folder."""
    for name, records in RECORDS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "bbh" / "cot-prompts").mkdir(parents=True)
    examples = [{"input": "not True is", "target": "False"}, {"input": "True is", "target": "True"}]
    (folder / "bbh" / "logic.json").write_text(json.dumps({"canary": "x", "examples": examples}))
    (folder / "bbh" / "cot-prompts" / "logic.txt").write_text("CANARY\n-----\nReason.\n\nQ: True is\nA: So it is.")
    (folder / "xnli").mkdir()
    head = "genre\tlabel\tsentence1\tsentence2\n"
    (folder / "xnli" / "test.en.tsv").write_text(head + "a\tcontradiction\tIt rains\tIt is dry\n" * 2)
    (folder / "xnli" / "test.sw.tsv").write_text(head + "a\tneutral\tMvua\tKavu\n")
    return folder
