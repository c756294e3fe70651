"""A launch of two processes on a CPU: one run, one folder, each process its own share of the text."""

import json
import os
import subprocess
import sys

from lora_drop.adapters.bank import AdapterBank
from lora_drop.paths import ASSETS

TEXT = "\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} lazy dogs." for n in range(60))


def test_two_processes_train_one_bank(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    # What `accelerate launch` starts; on a CPU it takes several processes from mpirun alone.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "lora_drop.train"]
    train = ["--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--model", "random:tiny-llama"]
    train += ["--device", "cpu", "--dtype", "float32", "--rank", "4", "--length", "32", "--batch-size", "2"]
    train += ["--accumulate", "2", "--max-tokens", "512", "--fit-batches", "1", "--json"]
    env = os.environ | {"PYTHONPATH": str(ASSETS.parent), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, *train], capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    # A step is 2 processes x 2 batches x 2 windows x 32 tokens.
    assert result["steps"] == 2 and done.stderr.count("memory: about ") == 1
    assert AdapterBank.load(result["adapters"]).meta["tokens"] == 512
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    assert [entry["tokens"] for entry in log] == [0, 256, 512], "one process writes"
