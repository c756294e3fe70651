"""The benchmarks' files as they are published: read, asked, scored; broken ones named in a line and left out."""

import json

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks.utils import TASKS, Options, overlap_f1, rouge_l
from tests.support.golden import check_golden
from tests.support.task_files import COPA, mbpp

pytest.importorskip("lm_eval")
from lora_drop.evaluation.tasks.benchmark import read_tasks


def silent(line):
    raise AssertionError(line)


def read(data, name, say=silent, limit=None):
    return list(load(data, name, say=say, limit=limit)[name].dataset["test"])


def load(data, *names, say=silent, limit=None):
    return read_tasks(Options(data, data / "out", names or None, limit), say)


def answer_of(task, text):
    [[answer]] = task._filters[0].filters[0]().apply([[text]], [None])
    return answer


def test_every_task_is_read_and_its_gold_text_is_right(task_data):
    tasks = load(task_data)
    assert tuple(tasks) == TASKS
    for task in tasks.values():
        docs = list(task.dataset["test"])
        for doc in docs:
            if "choices" in doc:
                assert doc["target"] in doc["choices"]
                continue
            right, wrong = doc["target"].replace("[DONE]", ""), "\n    return None" if task.config.unsafe_code else ""
            metric = task.config.metric_list[0]["metric"]
            assert task.process_results(doc, [answer_of(task, right)])[metric] == 1
            assert task.process_results(doc, [answer_of(task, wrong)])[metric] == 0
        assert len({doc["id"] for doc in docs}) == len(docs)


@pytest.mark.parametrize("name", ["hellaswag", "xcopa", "xnli"])
def test_the_space_before_a_choice_is_asked_and_not_counted(task_data, name):
    """As in lm-eval's own tasks: of -2 for one letter and -15 for eight, the second is the likelier a letter."""
    task = load(task_data, name)[name]
    doc = next(iter(task.dataset["test"]))
    assert not any(choice.startswith(" ") for choice in doc["choices"])
    asked = task.construct_requests(doc, doc["prompt"], metadata=(name, 0, 1))
    assert [one.args for one in asked] == [(doc["prompt"], f" {choice}") for choice in doc["choices"]]
    short = doc | {"choices": ["a", "abcdefgh"], "target": "abcdefgh"}
    assert task.process_results(short, [(-2.0, False), (-15.0, False)])["acc_norm"] == 1


def test_what_is_asked(task_data):
    """Every field of every document, with the stops of its task."""
    docs = {}
    for task in load(task_data).values():
        stop = (task.config.generation_kwargs or {}).get("until", [])
        docs |= {doc["id"]: doc | {"stop": stop} for doc in task.dataset["test"]}
    check_golden("prompts", docs)


def test_a_limit_takes_from_the_files_in_turn(task_data):
    assert [doc["part"] for doc in read(task_data, "xnli", limit=2)] == ["en", "sw"]


def test_a_limit_asks_different_records_in_each_language(task_data):
    for language in ("it", "sw", "tr"):
        records = [COPA | {"premise": f"{i}."} for i in range(7)]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (task_data / "xcopa" / f"test.{language}.jsonl").write_text(text)
    examples = read(task_data, "xcopa")
    assert len({example["id"] for example in examples}) == len(examples) == 21
    for start in (0, 3):
        asked = examples[start : start + 3]
        assert [example["part"] for example in asked] == ["it", "sw", "tr"]
        assert [example["prompt"][0] for example in asked] == [str(start + k) for k in range(3)]


def test_validation_files_only_where_there_are_no_others(task_data):
    (task_data / "xcopa" / "test.it.jsonl").unlink()
    assert [example["id"] for example in read(task_data, "xcopa")] == ["xcopa/val.it.jsonl:1"]


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("gsm8k", "1 and 2 make\n#### $1,234.50 dollars", "1234.5"),
        ("gsm8k", "It is 3, so 1,000.", "1000"),
        ("gsm8k", "none", ""),
        ("math", "a \\boxed{2} b \\boxed{ \\left( 3, \\tfrac{\\pi}{2} \\right) }.", "(3,\\frac{\\pi}{2})"),
        ("math", "\\boxed{12,345\\text{ cm}}", "12345cm"),
        ("math", "\\boxed{\\frac{1}{2}", ""),
        ("math", "2", ""),
        ("bbh", "We see.\nSo the answer is (B).\n\nQ: more", "(B)"),
        ("bbh", "it is (B)", ""),
        ("humaneval", "    return 1\n\n", "    return 1"),
    ],
)
def test_answers_are_found(task_data, name, text, answer):
    assert answer_of(load(task_data, name)[name], text) == answer


def test_overlaps():
    assert overlap_f1("A b, c", "b c d e") == pytest.approx(2 * 2 / 7)
    assert rouge_l("a b c d", "b x d") == pytest.approx(2 * 2 / 7)
    assert rouge_l("", "a") == overlap_f1("b", "a") == 0


BROKEN = {
    "cut": ("gsm8k/test.jsonl", '{"question"'),
    "a list": ("gsm8k/test.jsonl", "[1]"),
    "no mark": ("gsm8k/test.jsonl", '{"question": "a", "answer": "no mark"}'),
    "no answer": ("gsm8k/test.jsonl", '{"question": "a"}'),
    "deep": ("gsm8k/test.jsonl", "[" * 100_000),
    "label too large": ("hellaswag/v.jsonl", '{"ctx": "a", "endings": ["b", "c"], "label": 2}'),
    "endings no list": ("hellaswag/v.jsonl", '{"ctx": "a", "endings": "bc", "label": 0}'),
    "another question": ("xcopa/test.it.jsonl", json.dumps(COPA | {"question": "why"})),
    "too few cells": ("xnli/test.en.tsv", "a\tneutral\tonly"),
    "another label": ("xnli/test.en.tsv", "a\tmaybe\tb\tc"),
    "no code": ("mbpp/test.jsonl", json.dumps(mbpp(13, code=None))),
}


def test_a_broken_line_is_reported_once_and_left_out(task_data):
    reports = {}
    for case, (file, line) in BROKEN.items():
        name, path, notes = file.split("/")[0], task_data / file, []
        text, before = path.read_text(), len(read(task_data, name))
        path.write_text(f"{text}{line}\n")
        assert len(read(task_data, name, notes.append)) == before
        [reports[case]] = notes
        path.write_text(text)
    check_golden("tasks", reports)


def test_broken_files_are_reported_and_the_rest_goes_on(task_data):
    (task_data / "gsm8k" / "more.jsonl").write_bytes(b"\xff\xfe")
    (task_data / "bbh" / "other.json").write_text("{")
    with (task_data / "bbh" / "logic.json").open("w") as file:
        json.dump({"examples": [{"input": "a"}, 3, {"input": "True is", "target": "True"}]}, file)
    told = []
    tasks = load(task_data, "gsm8k", "bbh", say=told.append)
    assert [len(task.dataset["test"]) for task in tasks.values()] == [1, 1]
    assert [line.partition(":")[0] for line in told] == [
        *("gsm8k/more.jsonl", "bbh/logic.json, example 1", "bbh/logic.json, example 2", "bbh/other.json")
    ]


def test_a_task_without_a_record_that_can_be_read_is_an_error(task_data):
    (task_data / "math" / "m.jsonl").write_text("x\n")
    with pytest.raises(LoraDropError):
        read(task_data, "math", lambda line: None)
