"""Measure the speed table of docs/performance.md, as Markdown: `python -m scripts.speed_table`.

On a CPU the bundled model at drop ratios 0.5 and 0.75, periods 2, 4 and 8. On CUDA the shapes of the paper's four
models in bfloat16 with random weights (speed does not depend on their values): the same, and the widest range at
period 16. Each row is a `bench` in a new process, so that a model's memory is free before the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

GRID = [(ratio, period, None) for ratio in (0.5, 0.75) for period in (2, 4, 8)]
SHAPES = {"random:llama2-7b": 32, "random:llama3-8b": 32, "random:qwen2.5-7b": 28, "random:qwen2.5-14b": 48}
HEADER = (
    "| model | p | w | range | baseline, tokens/s | LoRA-Drop | speedup | bound | speedup / bound | GB/s | of read |"
)


def row(model: str, ratio: float, period: int, layers: str | None, extra: list[str]) -> str:
    """Measure one line of the table; a failed `bench` gives its error."""
    command = [sys.executable, "-m", "lora_drop", "bench", "--model", model, "--json", "--no-hf", *extra]
    command += ["--drop-ratio", str(ratio), "--period", str(period), *(["--layers", layers] if layers else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"| {model} | {ratio} | {period} | | {done.stderr.strip().splitlines()[-1]} | | | | | | |"
    r = json.loads(done.stdout)
    dropped = r["config"]["dropped"]
    return (
        f"| {r['model']['id']} | {ratio} | {period} | {dropped[0]}-{dropped[-1]} "
        f"| {r['baseline_tokens_per_second']:.1f} | {r['lora_drop_tokens_per_second']:.1f} "
        f"| {r['speedup']:.3f} | {r['bound']:.3f} | {r['speedup_over_bound']:.3f} "
        f"| {r['baseline_gb_per_second']:.1f} | {r['baseline_share_of_read_bandwidth']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    extra = ["--rounds", str(parser.parse_args().rounds)]
    models = SHAPES if torch.cuda.is_available() else {"bundled": None}
    print(HEADER)
    print("|---" * (HEADER.count("|") - 1) + "|")
    for model, layers in models.items():
        widest = [(1.0, 16, f"1-{layers - 1}")] if layers else []
        for ratio, period, span in GRID + widest:
            print(row(model, ratio, period, span, extra), flush=True)


if __name__ == "__main__":
    main()
