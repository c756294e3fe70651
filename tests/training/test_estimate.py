"""The estimate of a training run against what tensors are allocated; its refusal, its lines, its place in the JSON."""

import dataclasses
import json

import pytest
import torch

from lora_drop.cli.main import main
from lora_drop.models.load import load_model
from lora_drop.training import train as train_module
from lora_drop.training.estimate import memory, time_words
from lora_drop.training.settings import TrainJob, TrainSettings
from lora_drop.training.trainer import Trainer
from tests.support.allocated import Allocated

TEXT = "\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} lazy dogs." for n in range(100))
EXACT = {"refresh": "repair", "kv": "write"}


@pytest.mark.parametrize(
    ("model", "dtype", "changes"),
    [
        ("tiny-llama", "float32", {}),
        ("tiny-llama", "bfloat16", {"fit_batches": 0}),
        ("tiny-qwen2", "float32", EXACT | {"fit_batches": 0, "batch_size": 2}),
        ("tiny-qwen3", "float32", {"batch_size": 1, "length": 384, "fit_batches": 0}),
        ("tiny-mistral", "float32", EXACT | {"rank": 64}),
        ("tiny-mistral", "float32", EXACT | {"refresh": "single", "fit_batches": 0}),
    ],
)
def test_what_is_allocated_is_half_to_all_of_the_estimate(tmp_path, model, dtype, changes):
    loaded = load_model(f"random:{model}", dtype=dtype)
    settings = TrainSettings(**{"rank": 16, "length": 128, "batch_size": 4, "fit_batches": 1} | changes)
    windows = torch.randint(0, 256, (50, settings.length), generator=torch.Generator().manual_seed(0))
    with Allocated() as seen:
        trainer = Trainer(loaded, settings, TrainJob(tmp_path), windows)
        trainer.prepare()
        for _ in range(4):
            trainer.train_step()
        trainer.evaluate()
    needs = memory(loaded.shape, loaded.dtype.itemsize, settings, TrainJob(tmp_path))
    assert seen.peak <= needs.needed <= 2 * seen.peak
    numbers = sum(tensor.numel() for tensor in trainer.parameters)
    white = 4 * len(trainer.start.layers) * loaded.shape.hidden_size**2 * (settings.fit_batches > 0)
    assert needs.adapters == 6 * 4 * numbers + white


@pytest.fixture
def argv(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    base = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    tiny = ["--model", "random:tiny-llama", "--dtype", "float32", "--rank", "4", "--length", "32"]
    return [*base, *tiny, "--batch-size", "2", "--max-tokens", "200"]


def test_what_does_not_fit_is_refused_before_any_text_is_read(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_module, "free_memory", lambda device: 1000)
    monkeypatch.setattr(train_module, "read_texts", lambda *args: pytest.fail("text was read"))
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cpu has 0.0 MB free: lower --batch-size" in error
    assert not (tmp_path / "out" / "adapter").exists()


def test_the_estimate_comes_first_and_is_in_the_json(argv, capsys):
    assert main([*argv, "--json"]) == 0
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert lines[0].startswith("memory: about ") and "a batch of 2 x 32 tokens" in lines[0]
    assert lines[1].startswith("time: about ") and "for 256 tokens at " in lines[1]
    estimate = json.loads(out)["estimate"]
    parts = estimate["memory"]
    assert parts["needed"] == parts["adapters"] + parts["batch"] + parts["regression"] <= parts["free"]
    assert estimate["seconds"] > 0


def test_measuring_a_batch_changes_nothing(tiny, tmp_path):
    settings = TrainSettings(rank=8, length=48, batch_size=4, fit_batches=0)
    windows = torch.randint(0, 256, (20, settings.length), generator=torch.Generator().manual_seed(0))
    plain, probed = (Trainer(tiny, settings, TrainJob(tmp_path), windows) for _ in range(2))
    assert probed.probe() > 0
    assert probed.train_step() == plain.train_step()
    for one, other in zip(plain.parameters, probed.parameters, strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_needs_no_regression(tiny, tmp_path):
    settings, job = TrainSettings(), TrainJob(tmp_path)
    fresh, resumed, started = (
        memory(tiny.shape, 4, settings, changed)
        for changed in (job, dataclasses.replace(job, resume=True), dataclasses.replace(job, start=tmp_path))
    )
    assert fresh.regression > started.regression > resumed.regression == 0
    assert fresh.adapters == resumed.adapters


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12 s"), (700, "12 min"), (7500, "2 h 05 min")])
def test_times_in_words(seconds, words):
    assert time_words(seconds) == words
