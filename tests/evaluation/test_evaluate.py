"""Teacher-forced quality: through the real schedule, and equal to sums done by hand."""

import json

import pytest
import torch

from lora_drop.cli.main import main
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.tokens import encode_prompt
from tests.support.naive import naive_logits

ARGS = ["--prompt-field", "question", "--target-field", "answer", "--model", "random:tiny-llama", "--dtype", "float32"]
PAIRS = [("What is it?", "It is a cat."), ("Why?", "Because it can.")]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS))
    return path


def evaluated(capsys, *argv):
    assert main(["evaluate", *map(str, argv), *ARGS, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kv", ["skip", "write"])
def test_the_means_are_those_of_step_by_step_decoding(tiny, data, capsys, kv):
    result = evaluated(capsys, "--data", data, "--period", "3", "--drop-ratio", "1", "--kv", kv, "--reuse", "state")
    schedule = LoraDropConfig(period=3, drop_ratio=1.0, kv=kv, reuse="state").schedule_for(tiny.num_layers)
    rows = []
    for question, answer in PAIRS:
        prompt = encode_prompt(tiny.tokenizer, question)
        target = tiny.tokenizer.encode(answer, add_special_tokens=False)
        ours = naive_logits(tiny.model, prompt + target[:-1], len(prompt), schedule).log_softmax(-1)
        with torch.inference_mode():
            full = tiny.model(torch.tensor([prompt + target[:-1]])).logits[0, len(prompt) - 1 :].log_softmax(-1)
        for s, token in enumerate(target):
            kl = (full[s].exp() * (full[s] - ours[s])).sum()
            agrees = full[s].argmax() == ours[s].argmax()
            rows.append((s % 3 != 0, -full[s, token], -ours[s, token], kl, agrees))
    assert result["tokens"] == len(rows) == result["all_steps"]["count"]
    for key, chosen in (("all_steps", rows), ("lora_steps", [row for row in rows if row[0]])):
        means = [float(sum(row[k] for row in chosen)) / len(chosen) for k in range(1, 5)]
        names = ("nll_baseline", "nll_lora_drop", "kl", "top1_agreement")
        assert [result[key][name] for name in names] == pytest.approx(means, abs=1e-4)
        assert result[key]["count"] == len(chosen)


def test_period_1_measures_the_plain_model(data, capsys):
    result = evaluated(capsys, "--data", data, "--period", "1")
    every = result["all_steps"]
    assert every["nll_lora_drop"] == pytest.approx(every["nll_baseline"], abs=1e-5)
    assert every["kl"] == pytest.approx(0, abs=1e-6) and every["top1_agreement"] == 1.0
    assert result["lora_steps"] == {
        "count": 0, "nll_baseline": None, "nll_lora_drop": None, "kl": None, "top1_agreement": None
    }  # fmt: skip


def test_limit_and_context_tokens(data, capsys):
    one = evaluated(capsys, "--data", data, "--limit", "1")
    assert one["tokens"] == len(b"It is a cat.")
    cut = evaluated(capsys, "--data", data, "--limit", "1", "--context-tokens", "3")
    assert cut["tokens"] == one["tokens"]
    assert cut["all_steps"]["nll_baseline"] != one["all_steps"]["nll_baseline"]


@pytest.mark.parametrize(
    ("content", "argv", "says"),
    [
        (b"", [], "holds no record"),
        (b'{"question": "a", "answer": "b"}\n{"question"\n', [], "line 2: this is not JSON"),
        (b'{"question": "a", "reply": "b"}\n', [], "'answer'; the fields are: question, reply"),
        (b'{"question": "a", "answer": ""}\n', [], "'answer'"),
        (b"[1]\n", [], "line 1"),
        (b"[" * 100_000, [], "line 1: this is not JSON"),
        (b'{"question": " ", "answer": "b"}\n', [], "'question'"),
        (b"\xff\xfe\n", [], "UTF-8"),
        (json.dumps({"question": "a", "answer": "b" * 5000}).encode(), [], "--context-tokens"),
        (b'{"question": "a", "answer": "b"}\n', ["--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_bad_data_is_one_clear_line(tmp_path, capsys, content, argv, says):
    (tmp_path / "d.jsonl").write_bytes(content)
    assert main(["evaluate", "--data", str(tmp_path / "d.jsonl"), *argv, *ARGS]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1
