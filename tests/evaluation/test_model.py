"""LoRA-Drop in lm-eval: log-likelihoods are decoded through the schedule, texts are the engine's."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support import ROOT
from tests.support.naive import both_log_probs
from tests.support.tokenizer import make_tokenizer

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'lm-eval>=0.4.13,<0.5'"
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DROPPING = {"period": 4, "drop_ratio": 1.0, "reuse": "state", "adapters": "none"}
PAIRS = [("The sky", " is blue and far away"), ("What is it?", " A cat"), ("", "on its own")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny) -> Path:
    """tiny-llama with a real tokenizer."""
    folder = tmp_path_factory.mktemp("harness") / "tiny"
    tokenizer, model = make_tokenizer(), copy.deepcopy(tiny.model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make(folder, **settings):
    from lora_drop.evaluation.tasks.model import LoraDropLM

    return LoraDropLM(str(folder), device="cpu", dtype="float32", **settings)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def totals(lm, context, continuation):
    """The continuation's log-likelihood by the full model, and by the schedule token by token."""
    full, ours = both_log_probs(lm.loaded.model, context, continuation, lm.schedule)
    return [float(logs[range(len(continuation)), continuation].sum()) for logs in (full, ours)]


@installed
def test_log_likelihoods_are_those_of_the_schedule(folder):
    lm = make(folder, **DROPPING)
    found = lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert lm.schedule.dropped == (3, 4)
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        if context:
            ids, follow = lm._encode_pair(context, continuation)
        else:
            ids, follow = [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
        full, ours = totals(lm, ids, follow)
        assert total == pytest.approx(ours, abs=2e-3) and abs(total - full) > 0.1 and greedy is False
    text = "a longer text, read from its very start"
    [total] = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    assert total == pytest.approx(totals(lm, [lm.prefix_token_id], lm.tok_encode(text))[1], abs=2e-3)


@installed
def test_at_period_1_they_are_the_base_model_s(folder):
    from lm_eval.models.huggingface import HFLM

    ours, base = make(folder, period=1), HFLM(str(folder), device="cpu", dtype="float32")
    asked = requests("loglikelihood", PAIRS)
    for (total, greedy), (expected, exact) in zip(ours.loglikelihood(asked), base.loglikelihood(asked), strict=True):
        assert total == pytest.approx(expected, abs=1e-3) and greedy == exact
    rolling = requests("loglikelihood_rolling", [("a longer text, read from its very start",)])
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(base.loglikelihood_rolling(rolling), abs=1e-3)


@installed
def test_a_greedy_continuation_says_so_and_a_long_context_loses_its_start(folder):
    lm = make(folder, **DROPPING)
    ids = lm.tok_encode("Once")
    record = lm.decoder.prefill(torch.tensor([ids]), lm.decoder.new_state(lm.schedule)).logits.argmax().item()
    assert lm._loglikelihood_tokens([(None, ids, [record])], disable_tqdm=True)[0][1] is True
    long = [5] * lm.max_length + ids
    cut = lm._loglikelihood_tokens([(None, long, [7, 8])], disable_tqdm=True)
    assert cut == lm._loglikelihood_tokens([(None, long[-(lm.max_length - 1) :], [7, 8])], disable_tqdm=True)
    with pytest.raises(LoraDropError, match="does not fit"):
        lm._loglikelihood_tokens([(None, ids, [7] * (lm.max_length + 1))], disable_tqdm=True)


@installed
def test_generation_is_that_of_run(folder):
    lm = make(folder, **DROPPING)
    assert lm.tok_encode("Why?") == encode_prompt(lm.tokenizer, "Why?", chat=False)
    options = {"until": [], "max_gen_toks": 12, "chat": True}
    [text] = lm.generate_until(requests("generate_until", [("Why?", options)]))
    request = Request("Why?", LoraDropConfig(**DROPPING), 12, lanes="lora-drop", audit=False)
    assert text == gather(run(lm.loaded, request)).text("lora_drop")
    end = text[3:5]
    stopped = options | {"until": ["not there", end]}
    cut = lm.generate_until(requests("generate_until", [("Why?", stopped)]))
    assert cut == [text[: text.index(end)]]
    with pytest.raises(LoraDropError, match="num_beams"):
        lm.generate_until(requests("generate_until", [("Why?", {"until": [], "num_beams": 2})]))


@installed
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"period": 0}, "period must be"),
        ({"perod": 2}, "no model argument 'perod'"),
        ({"batch_size": 8}, "one text at a time"),
        ({"drop_layers": "9:99"}, "layer"),
    ],
)
def test_bad_arguments_are_one_line(folder, settings, says):
    with pytest.raises(LoraDropError, match=says):
        make(folder, **settings)


@pytest.mark.full
@installed
def test_lm_eval_runs_a_local_task(folder, tmp_path):
    rows = [{"q": "The sky is", "a": ["blue", "a cat"], "gold": 0}, {"q": "It says", "a": ["moo", "x"], "gold": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(
        "task: local_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'rows.jsonl'}\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{a}}"\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n'
    )
    arguments = f"pretrained={folder},dtype=float32,period=4,drop_ratio=1.0,reuse=state,adapters=none"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lora_drop.evaluation.tasks.model", "run", "--model", "lora_drop"),
            *("--model_args", arguments, "--tasks", "local_choice", "--include_path", str(tmp_path)),
            *("--device", "cpu", "--output_path", str(tmp_path / "out")),
        ],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [written] = (tmp_path / "out").rglob("results_*.json")
    result = json.loads(written.read_text())
    assert result["results"]["local_choice"]["acc,none"] in (0.0, 0.5, 1.0)
    assert result["config"]["lora_drop"]["dropped"] == [3, 4]


@installed
def test_the_entry_point_is_the_registered_model():
    """lm-eval reads the group `lm_eval.models` from its release after 0.4.13 on."""
    from lm_eval.api.registry import get_model

    [(name, value)] = PROJECT["entry-points"]["lm_eval.models"].items()
    entry = EntryPoint(name, value, "lm_eval.models").load()
    assert entry is get_model(name)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_one_line_says_what_to_install():
    command = [sys.executable, "-m", "lora_drop.evaluation.tasks.model", "--tasks", "hellaswag"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install 'lm-eval>=0.4.13,<0.5'" in done.stderr
    with pytest.raises(LoraDropError, match="the extra `benchmark`, cannot be imported"):
        import lora_drop.evaluation.tasks.model  # noqa: F401
