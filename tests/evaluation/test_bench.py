"""The bench: the contract's keys, bytes counted from the tensors, one line for a mistake. Times are not judged."""

import json

import pytest

from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.bench import bench
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import kv_bytes, speed_bound
from lora_drop.method.schedule import baseline_schedule

TINY = ["bench", "--model", "random:tiny-llama", "--dtype", "float32", "--rounds", "2"]
SMALL = ["--prompt-tokens", "9", "--new-tokens", "12"]
CONTRACT = {
    *("device", "model", "dtype", "baseline_tokens_per_second", "lora_drop_tokens_per_second"),
    *("hf_generate_tokens_per_second", "speedup", "bound", "speedup_over_bound", "baseline_gb_per_second"),
    *("kv_bytes_baseline", "kv_bytes_lora_drop", "config", "runs"),
}


@pytest.fixture(autouse=True)
def small_bandwidth(monkeypatch):
    monkeypatch.setattr("lora_drop.evaluation.bench.BANDWIDTH_BYTES", 2**20)


def test_the_contracts_keys_with_transformers_beside(capsys):
    assert main([*TINY, *SMALL, "--period", "3", "--drop-ratio", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= CONTRACT
    numbers = [result[name] for name in CONTRACT if "per_second" in name]
    assert all(number > 0 for number in numbers) and len(result["runs"]) == 2
    assert result["speedup_over_bound"] == pytest.approx(result["speedup"] / result["bound"])
    assert result["device"]["decoder"] and result["config"]["dropped"] == [3, 4]


def test_bytes_and_bound_are_those_of_the_run(tiny):
    config = LoraDropConfig(period=3, drop_ratio=1.0)
    result = bench(tiny, config, prompt_tokens=9, new_tokens=12, rounds=1)
    schedule = config.schedule_for(tiny.num_layers)
    assert result["kv_bytes_lora_drop"] == kv_bytes(tiny.shape, schedule, 9, 11, 4)
    assert result["kv_bytes_baseline"] == kv_bytes(tiny.shape, baseline_schedule(tiny.num_layers), 9, 11, 4)
    assert result["bound"] == speed_bound(tiny.shape, schedule, 11, 9)
    for lane in ("baseline", "lora_drop"):
        block = 64 * tiny.shape.kv_per_token * 4 * tiny.num_layers
        spare = result[f"kv_allocated_bytes_{lane}"] - result[f"kv_bytes_{lane}"]
        assert 0 <= spare < block


def test_the_table_for_people(capsys):
    assert main([*TINY, *SMALL, "--no-hf"]) == 0
    out = capsys.readouterr().out
    assert "baseline" in out and "LoRA-Drop" in out and "bound" in out and "transformers" not in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--new-tokens", "1"], "new_tokens must be at least 2"),
        (["--prompt-tokens", "0"], "prompt_tokens must be at least 1"),
        (["--prompt-tokens", "9000000"], "more than the context"),
    ],
)
def test_bad_input_is_one_line(argv, says, capsys):
    assert main([*TINY, *argv, "--no-hf"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lora_drop:")]
    assert len(err) == 1 and says in err[0]


def test_a_run_that_does_not_fit_says_what_to_lower(tiny, monkeypatch):
    import torch

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lora_drop.decode.reference.ReferenceDecoder.prefill", full)
    with pytest.raises(LoraDropError, match="does not fit into the memory .* lower them"):
        bench(tiny, LoraDropConfig(), prompt_tokens=9, new_tokens=12, rounds=1)
