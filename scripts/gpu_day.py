"""A card's first day: everything that needs a CUDA device, in order: `make gpu-day`, or `python -m scripts.gpu_day`.

Each step leaves its output in `--out`: NAME.json or NAME.txt, its messages in NAME.log, and its time and exit code in
done.json; tables.md has all tables for the docs. A step that succeeded is not run again, so a day that was cut off
goes on where it ended. `python -m scripts.gpu_day NAME ...` runs these steps alone, again if need be. A step takes at
most 8 minutes and a call at most 25: what is left then is for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STEP_SECONDS, CALL_SECONDS = 480, 1500
PROGRAM = [sys.executable, "-m", "lora_drop"]
EAGER = {"LORA_DROP_COMPILE": "0"}
SHAPES = ("llama2-7b", "llama3-8b", "qwen2.5-7b", "qwen2.5-14b")
OUT_OF_TIME = 124  # as `timeout` has it


def steps(out: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Each step's command and its further environment, by name, in order."""
    bench = [*PROGRAM, "bench", "--json"]
    data = ["--data", str(prompts(out)), "--prompt-field", "prompt", "--target-field", "target"]
    measure = [sys.executable, "-m", "scripts.gpu_day", "--measure"]
    return {
        "tests": ([sys.executable, "-m", "pytest", "-m", "gpu", "-q"], {}),
        "bench-bundled": ([*bench, "--preset", "balanced"], {}),
        "bench-bundled-eager": ([*bench, "--preset", "balanced", "--no-hf"], EAGER),
        "bench-llama3-8b": ([*bench, "--model", "random:llama3-8b"], {}),
        "bench-llama3-8b-eager": ([*bench, "--model", "random:llama3-8b", "--no-hf"], EAGER),
        **{
            f"shapes-{shape}": ([sys.executable, "-m", "scripts.paper_shapes", shape, "--memory", "40"], {})
            for shape in SHAPES
        },
        "presets": ([*PROGRAM, "presets", *data, "--out", str(out / "presets"), "--json"], {}),
        "memory": ([*measure, "memory"], {}),
        "profile": ([*measure, "profile"], {}),
        "page": ([sys.executable, "tests/browser/measure.py", "--steps", "400", "--repeats", "2"], {}),
    }


def prompts(out: Path) -> Path:
    """A file of prompts and the answers that are shipped for them, which `presets` measures on."""
    from lora_drop.paths import SHIPPED_PRESETS
    from lora_drop.run.trace.records import BASELINE

    samples = json.loads((SHIPPED_PRESETS / "samples.json").read_text(encoding="utf-8"))["samples"]
    pairs = [
        {"prompt": sample["prompt"], "target": sample["text"]} for sample in samples if sample["lane"] == BASELINE
    ]
    path = out / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    return path


def skipped(name: str) -> str | None:
    """Why a step cannot run here; None if it can."""
    if name == "page":
        from tests.browser import install

        if find_spec("playwright") is None or install.find() is None:
            return "there is no Chromium here"
    return None


def run(name: str, out: Path, seconds: float) -> dict[str, Any]:
    """Run a step in another process; returns its exit code and its time."""
    command, more = steps(out)[name]
    started = time.monotonic()
    draft, log = out / f"{name}.draft", out / f"{name}.log"
    with draft.open("w") as output, log.open("w") as messages:
        try:
            options: Any = {"stdout": output, "stderr": messages, "env": os.environ | more, "start_new_session": True}
            process = subprocess.Popen(command, **options)
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = OUT_OF_TIME
        finally:
            with suppress(ProcessLookupError):  # and all that it has started
                os.killpg(process.pid, signal.SIGKILL)
    kind = "json" if draft.read_text().startswith("{") else "txt"
    draft.replace(out / f"{name}.{kind}")
    return {"code": code, "seconds": round(time.monotonic() - started, 1)}


def tables(out: Path, done: dict[str, Any]) -> str:
    """The tables for the docs, as Markdown, of what was measured so far."""
    lines = ["| step | exit code | seconds |", "|---|---|---|"]
    lines += [
        f"| {name} | {step.get('skipped', step.get('code'))} | {step.get('seconds', '')} |"
        for name, step in done.items()
    ]
    columns = ["baseline_tokens_per_second", "lora_drop_tokens_per_second", "speedup", "speedup_interval", "bound"]
    columns += ["baseline_gb_per_second", "rows_cost", "hf_generate_tokens_per_second"]
    lines += ["", f"| bench | device | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for path in sorted(out.glob("bench-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        cells = [result["device"]["name"], *(result.get(column) for column in columns)]
        lines.append(f"| {path.stem} | {' | '.join(map(str, cells))} |")
    for path in sorted(out.glob("*.txt")):
        if path.stem != "tests":
            lines += ["", f"## {path.stem}", "", path.read_text(encoding="utf-8")]
    return "\n".join(lines) + "\n"


def memory() -> None:
    """Print the bytes that runs leave on the card after the first, and after the model is gone."""
    import gc

    import torch

    from lora_drop.decode.static.decoder import StaticWeights
    from lora_drop.models.load import load_model
    from lora_drop.run.request import Request
    from lora_drop.run.results.bank_presets import presets_of
    from lora_drop.run.run import run as run_lanes

    held = {"empty": torch.cuda.memory_allocated()}
    loaded = load_model("bundled", "cuda")
    held["loaded"] = torch.cuda.memory_allocated()
    for number in range(3):
        for preset in presets_of(loaded).values():
            list(run_lanes(loaded, Request("Why is the sky blue?", preset.config, 64)))
        gc.collect()
        held[f"round {number + 1}"] = torch.cuda.memory_allocated()
    assert isinstance(loaded.weights, StaticWeights)
    idle = sum(buffers.nbytes for _, buffers in loaded.weights.store)
    del loaded
    gc.collect()
    held["gone"] = torch.cuda.memory_allocated()
    print(json.dumps({"allocated_bytes": held, "idle_buffers_bytes": idle, "peak": torch.cuda.max_memory_allocated()}))


def profile() -> None:
    """Print the kernels of a LoRA step and of the full step after it, on Llama-3-8B's shape."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from lora_drop.decode.lane import Lane
    from lora_drop.decode.sampling import Sampling
    from lora_drop.decode.step import StepResult
    from lora_drop.method.config import LoraDropConfig
    from lora_drop.models.load import load_model

    loaded = load_model("random:llama3-8b", "cuda")
    schedule = LoraDropConfig(period=2).schedule_for(loaded.num_layers)
    lane = Lane(
        loaded.new_decoder(), torch.ones(1, 64, dtype=torch.long, device="cuda"), schedule, None, Sampling(), 32
    )
    for _ in range(9):
        next(lane)
    for kind in ("lora", "refresh"):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            step = next(lane)
            torch.cuda.synchronize()
        assert isinstance(step, StepResult)
        print(f"{kind}: step {step.step}, {step.ms:.3f} ms by the lane's clock\n")
        print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=25))


MEASURES: dict[str, Callable[[], None]] = {"memory": memory, "profile": profile}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="STEP", help="these alone, again if they have run; all that are left"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("test-results/gpu-day"),
        help="the folder of all output (test-results/gpu-day)",
    )
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        MEASURES[args.measure]()
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    names = list(steps(args.out))
    if unknown := set(args.names) - set(names):
        parser.error(f"no step {', '.join(sorted(unknown))}: use {', '.join(names)}")
    path, end = args.out / "done.json", time.monotonic() + CALL_SECONDS
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in args.names or [name for name in names if done.get(name, {}).get("code") != 0]:
        seconds = min(STEP_SECONDS, end - time.monotonic())
        if seconds <= 0:
            print(f"{name}: left for the next call")
            continue
        why = skipped(name)
        print(f"{name}: {why or 'begins'}", flush=True)
        done[name] = {"skipped": why} if why else run(name, args.out, seconds)
        path.write_text(json.dumps(done, indent=1))
        (args.out / "tables.md").write_text(tables(args.out, done), encoding="utf-8")
    failed = [name for name, step in done.items() if step.get("code")]
    print(f"{args.out / 'tables.md'} has the tables{'; failed: ' + ', '.join(failed) if failed else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
