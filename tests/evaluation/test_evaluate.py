"""Quality on given texts, on own answers and of free text: equal to sums done by hand."""

import dataclasses
import hashlib
import json
import math

import pytest
import torch

from lora_drop.cli.main import main
from lora_drop.evaluation.measure import metrics, texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.results import prompts
from tests.support.naive import both_log_probs

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]
ARGS = ["--prompt-field", "question", "--target-field", "answer", *TINY]
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
        full, ours = both_log_probs(tiny.model, prompt, target, schedule)
        for s, token in enumerate(target):
            kl = (full[s].exp() * (full[s] - ours[s])).sum()
            agrees = full[s].argmax() == ours[s].argmax()
            kind = "prefill" if s == 0 else "lora_steps" if s % 3 else "full_steps"
            rows.append((kind, -full[s, token], -ours[s, token], kl, agrees))
    assert result["tokens"] == len(rows) == result["all_steps"]["count"]
    assert sum(row[0] == "prefill" for row in rows) == len(PAIRS)
    for key in ("all_steps", "lora_steps", "full_steps"):
        chosen = [row for row in rows if key in ("all_steps", row[0])]
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


def test_the_loss_has_an_interval_and_the_prompts_a_limit(data, capsys):
    asked = "--data", data, "--period", "3", "--drop-ratio", "1"
    result, alone = evaluated(capsys, *asked), evaluated(capsys, *asked, "--limit", "1")
    low, high = result["loss_interval"]
    assert low < result["all_steps"]["kl"] < high, "of two prompts, one alone is the worst draw"
    assert alone["loss_interval"] is None and alone["tokens"] == len(b"It is a cat.")
    assert any(alone["all_steps"]["kl"] == pytest.approx(end) for end in (low, high))
    cut = evaluated(capsys, *asked, "--limit", "1", "--context-tokens", "3")
    assert cut["tokens"] == alone["tokens"]
    assert cut["all_steps"]["nll_baseline"] != alone["all_steps"]["nll_baseline"]


# ---- the full model's own answers ----


OWN = ["evaluate", "--target", "own", *TINY]


def greedy(tiny, prompt):
    """transformers' own greedy answer, its end token left out."""
    ids = torch.tensor([encode_prompt(tiny.tokenizer, prompt)])
    found = tiny.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=texts.ANSWER_TOKENS, do_sample=False,
        pad_token_id=0, eos_token_id=sorted(tiny.stop_ids),
    )  # fmt: skip
    answer = found[0, ids.shape[1] :].tolist()
    return answer[:-1] if answer[-1] in tiny.stop_ids else answer


@pytest.fixture
def short_answers(monkeypatch):
    """A random model repeats itself soon; of 31 tokens none can fill the last 32."""
    monkeypatch.setattr(texts, "ANSWER_TOKENS", 31)


def test_own_answers_are_the_full_models_greedy_ones(tiny, data, short_answers, capsys):
    prompts = [question for question, _ in PAIRS]
    answers = texts.own_answers(tiny, prompts)
    assert answers.answers == [greedy(tiny, prompt) for prompt in prompts]
    assert main([*OWN, "--data", str(data), "--prompt-field", "question", "--period", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    schedule = LoraDropConfig(period=3)
    assert result == json.loads(json.dumps(metrics.evaluate(tiny, schedule, answers.texts())))
    assert result["tokens"] == sum(map(len, answers.answers))
    config = result["config"]
    assert (config["target"], config["prompts"], config["left_out"]) == ("own", 2, 0)
    assert config["answers_sha256"] == hashlib.sha256(json.dumps(answers.answers).encode()).hexdigest()
    full = result["full_steps"]["nll_baseline"] + result["lora_steps"]["nll_baseline"]
    assert full > 0 and config["draft"] is False


def test_answers_that_collapse_or_are_empty_are_left_out_and_counted():
    good = list(range(40))
    answers = texts.Answers([[1], [2], [3]], [good, [5] * 40, []])
    kept = answers.texts()
    assert kept.pairs == [([1], good)] and (kept.facts["prompts"], kept.facts["left_out"]) == (3, 2)


def test_without_any_answer_to_score_there_is_one_clear_line(data, monkeypatch, capsys):
    monkeypatch.setattr(texts, "collapse_at", lambda answer: 0)
    assert main([*OWN, "--data", str(data), "--prompt-field", "question"]) == 2
    err = capsys.readouterr().err
    assert "goes in circles" in err and err.count("\n") == 1


def test_an_end_token_is_no_part_of_an_answer(tiny, monkeypatch):
    whole = texts.own_answers(tiny, ["Why?"]).answers[0]
    stop = whole[7]
    first = whole.index(stop)
    monkeypatch.setattr(type(tiny), "stop_ids", frozenset({stop}))
    assert texts.own_answers(tiny, ["Why?"]).answers[0] == whole[:first]


def test_without_a_file_the_prompts_are_the_held_out_ones(monkeypatch, short_answers, capsys):
    monkeypatch.setattr(prompts, "HELD_OUT", ("One?", "Two?", "Three?"))
    assert main([*OWN, "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["prompts"] == 2


def test_accept_is_said_to_have_no_effect_on_a_forced_text(tiny, short_answers):
    reference = dataclasses.replace(tiny, weights=None)
    answers = texts.own_answers(reference, ["Why?"]).texts()
    config = LoraDropConfig(refresh="repair", kv="write", accept=0.5)
    drafts, kept = (metrics.evaluate(reference, config.replace(accept=accept), answers) for accept in (0.5, 0))
    assert drafts["config"]["draft"] is True and kept["config"]["draft"] is False
    assert drafts["all_steps"] == kept["all_steps"] and drafts["lora_steps"]["kl"] > 0


# ---- free text ----


def test_regret_is_what_the_favourite_has_over_the_token():
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]])
    assert metrics.regrets(logits, torch.tensor([1, 1])).tolist() == pytest.approx([2.0, 0.0], abs=1e-6)


def test_free_text_is_the_lanes_own_judged_by_the_full_model(tiny, data, short_answers, capsys):
    argv = [*OWN, "--data", str(data), "--prompt-field", "question", "--period", "4", "--drop-ratio", "1", "--free"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["free"]
    logs, choices, repeats = [], [], []
    for question, _ in PAIRS:
        run = ["run", "--prompt", question, *TINY, "--max-new-tokens", "31", "--period", "4", "--drop-ratio", "1"]
        assert main([*run, "--lanes", "lora-drop", "--json"]) == 0
        ids = json.loads(capsys.readouterr().out)["lora_drop"]["token_ids"]
        prompt = encode_prompt(tiny.tokenizer, question)
        full, _ = both_log_probs(tiny.model, prompt, ids, baseline_schedule(tiny.num_layers))
        logs += [float(row.max() - row[token]) for row, token in zip(full, ids, strict=True)]
        choices += [int(row.argmax()) == token for row, token in zip(full, ids, strict=True)]
        grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
        repeats.append(sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams))
    assert not all(choices), "a lane that skips every layer has choices of its own"
    assert found["tokens"] == len(logs)
    assert found["regret"] == pytest.approx(sum(logs) / len(logs), abs=1e-4)
    assert found["worst"] == pytest.approx(max(logs), abs=1e-4)
    assert found["own_choices"] == pytest.approx(sum(choices) / len(choices))
    assert found["repeated_4grams"] == pytest.approx(sum(repeats) / 2)
    assert found["regret_low"] <= found["regret"] <= found["regret_high"]
    above = found["repeated_4grams"] - found["repeated_4grams_baseline"]
    assert found["repeats_above_low"] <= above <= found["repeats_above_high"]


def test_the_full_models_own_text_leaves_nothing_to_regret(data, short_answers, capsys):
    argv = ["--data", str(data), "--prompt-field", "question", "--free", "--period", "1"]
    assert main(["evaluate", *TINY, *argv, "--json"]) == 0  # without a target field: own answers
    result = json.loads(capsys.readouterr().out)
    found = result["free"]
    assert found["regret"] == pytest.approx(0, abs=1e-5) and found["own_choices"] == 1
    assert found["repeated_4grams"] == found["repeated_4grams_baseline"]
    assert result["config"]["target"] == "own"


def test_free_text_by_accept_1_is_the_full_models(tiny, short_answers):
    reference = dataclasses.replace(tiny, weights=None)
    answers = texts.own_answers(reference, ["Why?", "What?"])
    config = LoraDropConfig(period=4, drop_ratio=1.0, refresh="repair", kv="write", adapters="none")
    lossless = metrics.evaluate_free(reference, config.replace(accept=1.0), answers)
    assert lossless["regret"] == pytest.approx(0, abs=1e-5) and lossless["own_choices"] == 1
    within = metrics.evaluate_free(reference, config.replace(accept=0.5), answers)
    drafts = metrics.evaluate_free(reference, config, answers)
    assert within["worst"] <= math.log(2) + 1e-4 < drafts["worst"]


def test_the_table_for_people(data, short_answers, capsys):
    assert main([*OWN, "--data", str(data), "--prompt-field", "question", "--free"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("LoRA steps", "full steps", "all steps", "regret", "95 of 100"))
