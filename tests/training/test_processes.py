"""A launch of two processes on a CPU (gloo): one run, one folder, and one process's losses with the same batch."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.cli.main import main
from lora_drop.paths import ASSETS
from lora_drop.training import train as train_module
from lora_drop.training.settings import TrainJob, TrainSettings

TEXT = "\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} lazy dogs." for n in range(60))
# On a CPU this is the way to several processes without mpirun.
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
# A rate that does not depend on the end, so that a resumed run may have another one.
TINY = """--model random:tiny-llama --device cpu --dtype float32 --rank 4 --length 32 --batch-size 2 --fit-batches 1
    --warmup 0 --decay 0 --checkpoint-every 1 --json""".split()


def options(out, tokens, accumulate):
    """Of a training of 128 tokens for each `accumulate` and process."""
    return ["--data", "text.txt", "--out", out, *TINY, "--accumulate", str(accumulate), "--max-tokens", str(tokens)]


def launch(folder, *words):
    """Train in two processes; the result."""
    env = os.environ | {"PYTHONPATH": str(ASSETS.parent), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *LAUNCH, "-m", "lora_drop.training", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("memory: about ") == 1
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("own", "place"), [("cuda:1", "cuda:1"), ("cpu:0", "cpu")])
def test_each_process_of_a_launch_has_a_card_of_its_own(tmp_path, monkeypatch, own, place):
    """By itself `auto` is the card with the most free memory, which would be the same one for all."""
    (tmp_path / "text.txt").write_text(TEXT)
    asked = []
    state = SimpleNamespace(num_processes=2, device=torch.device(own), is_main_process=True)
    monkeypatch.setattr(train_module, "PartialState", lambda cpu: state)
    monkeypatch.setattr(train_module.load, "load_model", lambda model, device, *_, **__: asked.append(device) or 1 / 0)
    for device in ("auto", "cuda", "cuda:0", "cpu"):
        with pytest.raises(ZeroDivisionError):
            train_module.train(TrainSettings(), TrainJob(tmp_path, [tmp_path / "text.txt"], device=device))
    assert asked == [place, place, "cuda:0", "cpu"]


@pytest.mark.full
def test_two_processes_have_the_losses_of_one_and_go_on_from_a_checkpoint(tmp_path, monkeypatch, capsys):
    """A step is 4 batches of 2 x 32 tokens: 4 of one process, or 2 of each of two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["train", *options("out1", 1536, 4)]) == 0
    alone = json.loads(capsys.readouterr().out)
    launch(tmp_path, *options("out2", 768, 2))
    result = launch(tmp_path, *options("out2", 1536, 2), "--resume")
    assert result["steps"] == alone["steps"] == 6
    one, two = log(tmp_path / "out1"), log(tmp_path / "out2")
    assert [entry["tokens"] for entry in two] == [0, 256, 512, 768, 1024, 1280, 1536], "one process writes"
    for name in ("loss", "agreement"):
        assert [entry[name] for entry in two[1:]] == pytest.approx([entry[name] for entry in one[1:]], abs=1e-5)
    assert len({round(entry["loss"], 4) for entry in one[1:]}) == 6, "the steps differ by far more than that"
    assert two[-1]["evaluation"] == one[-1]["evaluation"] | {
        "schedules": [
            {name: pytest.approx(value, abs=1e-5) for name, value in row.items()}
            for row in one[-1]["evaluation"]["schedules"]
        ]
    }
    assert AdapterBank.load(tmp_path / "out2").meta["tokens"] == 1536
    assert main(["train", *options("out2", 1536, 2), "--resume"]) == 2
    assert "made by 2 processes, this launch has 1: start as many" in capsys.readouterr().err
