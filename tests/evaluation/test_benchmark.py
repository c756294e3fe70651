"""Benchmarks: both lanes in one run, through the real schedule; resumed, refused, bounded, reported in lines."""

import json
import os

import numpy as np
import pytest

from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks import utils
from lora_drop.evaluation.tasks.utils import TASKS, read
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.tokens import encode_prompt, encode_text
from tests.support.naive import both_log_probs

pytest.importorskip("lm_eval")
from lora_drop.evaluation.tasks.benchmark import Runner, _bootstrap, _wilson, fit_prompt
from lora_drop.evaluation.tasks.model import LaneLM

MODEL = ["--model", "random:tiny-llama", "--dtype", "float32", "--device", "cpu"]
DROPPING = ["--period", "3", "--drop-ratio", "1", "--reuse", "state"]
CONFIG = LoraDropConfig(period=3, drop_ratio=1.0, reuse="state")


@pytest.fixture
def bench(task_data, tmp_path, capsys):
    """Runs the command; gives its JSON and its stderr."""

    def command(*more, code=0, out="out"):
        argv = ["benchmark", "--data-dir", task_data, "--out", tmp_path / out, "--max-new-tokens", 8]
        assert main([*argv[:1], *MODEL, *DROPPING, *map(str, [*argv[1:], *more])]) == code
        captured = capsys.readouterr()
        return (json.loads(captured.out) if "--json" in more else captured.out), captured.err

    command.out = tmp_path / "out"
    command.data = task_data
    return command


def lines(bench):
    return [json.loads(line) for line in (bench.out / "records.jsonl").read_text().splitlines()]


def test_all_tasks_in_one_run(bench):
    result, err = bench("--json", "--run-code")
    assert [row["task"] for row in result["rows"]] == list(TASKS)
    for row in result["rows"]:
        assert row["records"] == row["scored"] > 0 and row["skipped"] == 0
        for lane in ("baseline", "lora_drop"):
            assert 0 <= row[lane]["low"] <= row[lane]["value"] <= row[lane]["high"] <= 1
        assert row["difference"]["value"] == pytest.approx(row["lora_drop"]["value"] - row["baseline"]["value"])
        assert row["all_steps_kl"]["value"] > 0 and row["lora_steps_count"] < row["all_steps_count"]
    table = (bench.out / "benchmark.md").read_text()
    assert all(f"| {name} |" in table for name in TASKS)
    assert json.loads((bench.out / "benchmark.json").read_text()) == result
    assert result["settings"]["adapters"] == "none" and result["settings"]["dropped"] == [3, 4]
    assert "record" in err  # the progress bar


def test_nothing_asks_the_network(bench, monkeypatch):
    calls = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(f"socket.socket.{name}", lambda *args, name=name: calls.append(name))
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **more: calls.append("getaddrinfo"))
    bench("--tasks", "gsm8k")
    assert calls == [] and os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_quality_and_choices_are_those_of_step_by_step_decoding(bench, tiny):
    result, _ = bench("--json", "--tasks", "hellaswag")
    [example] = read("hellaswag", bench.data)["test"]
    [record] = lines(bench)
    schedule = CONFIG.schedule_for(tiny.num_layers)
    prompt = encode_prompt(tiny.tokenizer, example["prompt"], chat=False)
    for k, choice in enumerate(example["choices"]):
        ids = encode_text(tiny.tokenizer, f" {choice}")
        logs = both_log_probs(tiny.model, prompt, ids, schedule)
        for lane, of_lane in zip(("baseline", "lora_drop"), logs, strict=True):
            total = float(of_lane[range(len(ids)), ids].sum())
            assert record[lane]["log_likelihoods"][k] == pytest.approx(total, abs=2e-3)
    for lane in ("baseline", "lora_drop"):
        normed = [
            total / len(text) for total, text in zip(record[lane]["log_likelihoods"], example["choices"], strict=True)
        ]
        assert record[lane]["answer"] == int(np.argmax(normed))
        assert record[lane]["score"] == (example["choices"][record[lane]["answer"]] == example["target"])
    gold = example["choices"].index(example["target"])
    every = record["all_steps"]
    assert every["nll_lora_drop"] * every["count"] == pytest.approx(-record["lora_drop"]["log_likelihoods"][gold])
    assert result["rows"][0]["all_steps_nll_baseline"]["value"] == pytest.approx(every["nll_baseline"])


def test_at_period_1_both_lanes_are_one(bench):
    result, _ = bench("--json", "--period", "1", "--tasks", "gsm8k,xcopa,longbench", out="one")
    for row in result["rows"]:
        assert row["same_answer"] == 1 and row["difference"]["value"] == 0
        assert row["all_steps_kl"]["value"] == pytest.approx(0, abs=1e-6)
        assert row["lora_steps_top1_agreement"]["value"] is None


def test_it_goes_on_where_it_ended(bench, monkeypatch):
    bench("--tasks", "xnli", "--limit", "1")
    first = lines(bench)
    with (bench.out / "records.jsonl").open("a") as file:
        file.write('{"task": "xnli", "id": "xnli/te')  # a run that was killed while it wrote
    ran = []
    run = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, task, doc: ran.append(doc["id"]) or run(self, task, doc))
    result, _ = bench("--json", "--tasks", "xnli,hellaswag")
    assert ran == ["xnli/test.sw.tsv:2", "xnli/test.en.tsv:3", "hellaswag/v.jsonl:1"]
    assert lines(bench)[0] == first[0] and [row["scored"] for row in result["rows"]] == [3, 1]
    again, _ = bench("--json", "--tasks", "xnli,hellaswag")
    assert len(ran) == 3 and again["rows"] == result["rows"]


def test_a_changed_record_runs_again(bench):
    bench("--tasks", "hellaswag")
    path = bench.data / "hellaswag" / "v.jsonl"
    path.write_text(path.read_text().replace("A man", "A dog"))
    result, _ = bench("--json", "--tasks", "hellaswag")
    assert len(lines(bench)) == 2 and result["rows"][0]["records"] == 1


@pytest.mark.parametrize("changed", [["--drop-ratio", "0.5"], ["--max-new-tokens", "9"], ["--run-code"]])
def test_other_settings_are_refused(bench, changed):
    bench("--tasks", "xcopa")
    bench("--tasks", "xcopa", *changed, code=2)


def test_code_is_not_run_unless_asked(bench, monkeypatch):
    monkeypatch.setattr(utils, "passes", lambda doc, answers: pytest.fail("a program was run"))
    result, _ = bench("--json", "--tasks", "humaneval,mbpp")
    for row in result["rows"]:
        assert row["scored"] == 0 and row["baseline"]["value"] is None and row["same_answer"] is None
        assert row["all_steps_nll_baseline"]["value"] > 0
    assert "| humaneval | pass@1 | 0 |  | - | - | - | - |" in (bench.out / "benchmark.md").read_text()


def test_programs_that_meet_a_limit_are_reported_and_the_rest_goes_on(bench, monkeypatch):
    monkeypatch.setattr(LaneLM, "generate", lambda *args, **more: "\n    held = bytearray(10**12)\n    return 3")
    result, err = bench("--json", "--run-code", "--tasks", "humaneval,hellaswag")
    reports = [line for line in err.replace("\r", "\n").splitlines() if "program:" in line]
    assert len(reports) == 2 and all("MemoryError" in line for line in reports)
    assert "humaneval/h.jsonl:1, full model's program: " in reports[0] and "LoRA-Drop's program" in reports[1]
    assert [row["scored"] for row in result["rows"]] == [1, 1] and result["rows"][0]["baseline"]["value"] == 0


def test_a_right_program_passes(bench, monkeypatch):
    monkeypatch.setattr(LaneLM, "generate", lambda *args, **more: "\n    return a + b")
    result, _ = bench("--json", "--run-code", "--tasks", "humaneval")
    assert result["rows"][0]["baseline"]["value"] == result["rows"][0]["lora_drop"]["value"] == 1


def test_records_that_do_not_fit_are_reported_and_the_rest_goes_on(bench):
    path = bench.data / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text() + json.dumps({"question": "?", "answer": "x" * 5000 + "#### 1"}) + "\n{\n")
    result, err = bench("--json", "--tasks", "gsm8k")
    assert "note: gsm8k/test.jsonl:2: its answer alone fills the context of 4096 tokens; left out." in err
    assert "note: gsm8k/test.jsonl, line 3: this is not a JSON object; left out." in err
    assert (result["rows"][0]["records"], result["rows"][0]["skipped"]) == (1, 1)


def test_long_prompts_lose_their_middle(bench, tiny):
    text, cut = fit_prompt(tiny.tokenizer, "start " + "x" * 500 + " ende", False, 41)
    assert cut and text == "start " + "x" * 13 + " " + "x" * 14 + " ende"
    assert fit_prompt(tiny.tokenizer, "short", False, 41) == ("short", False)
    text, _ = fit_prompt(tiny.tokenizer, "文" * 300, False, 40)
    assert len(encode_prompt(tiny.tokenizer, text, False)) <= 40 and "\ufffd" not in text
    with pytest.raises(LoraDropError, match="does not fit into 2 tokens"):
        fit_prompt(tiny.tokenizer, "long text", False, 2)
    result, _ = bench("--json", "--tasks", "mbpp", "--context-tokens", "60")
    assert result["rows"][0]["cut"] == 2


def test_intervals():
    found = _wilson(np.array([1.0] * 8 + [0.0] * 2))
    assert [found[name] for name in ("value", "low", "high")] == pytest.approx([0.8, 0.4902, 0.9433], abs=1e-4)
    assert _wilson(np.zeros(5))["low"] == 0 and _wilson(np.ones(5))["high"] == 1
    assert _wilson(np.array([])) == _bootstrap(np.array([])) == {"value": None, "low": None, "high": None}
    values, weights = np.arange(100.0), np.ones(100)
    found = _bootstrap(values, weights)
    assert found == _bootstrap(values) and found["value"] == 49.5
    assert found["low"] == pytest.approx(49.5 - 1.96 * 2.89, abs=0.6)
    assert _bootstrap(np.array([1.0, 4.0]), np.array([3.0, 1.0]))["value"] == 1.75


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("benchmark.json", "{", "benchmark.json is not a benchmark.json of the benchmark command"),
        ("records.jsonl", "{}\n", "out/records.jsonl is broken"),
        ("records.jsonl", "x\n", "out/records.jsonl is broken"),
    ],
)
def test_a_broken_folder_is_one_line(bench, name, content, says):
    bench("--tasks", "hellaswag")
    (bench.out / name).write_text(content)
    _, err = bench("--tasks", "hellaswag", code=2)
    assert says in err
