"""The paper's settings on the shapes of its four models, as Markdown: `python -m scripts.paper_shapes`.

Random weights in bfloat16: speed and memory do not depend on their values. Each setting runs two refresh cycles a
lane, the lanes a step each in turn, three rounds after a warm-up. A model that does not fit into `--memory` loses half
of its layers, until it does; its row says so, and the layers skipped are then those of the shorter model. The rule is
the paper's (`state`), without adapters: of rank 16 they are a thousandth of the bytes. `--out` writes the figures as
a file of `assets/shapes`, with what one more row of a pass costs on each shape.

For Llama-3-8B on two cores that read 30 GB/s a full step takes half a second, and all nine settings ten minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lora_drop.evaluation.measure.bench import (
    beside,
    one_more_row,
    rate_of,
    read_bandwidth,
    rows_cost,
    time_lanes,
    tokens_of_text,
)
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import ModelShape, kv_saved
from lora_drop.method.paper import LABEL, ROWS
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.place import describe_device, resolve_device
from lora_drop.models.random_weights import SHAPES
from lora_drop.paths import write_files
from lora_drop.run.report.report import Report
from lora_drop.run.request import LanePlan, baseline_lane
from lora_drop.run.results.files import SHAPES as SHAPES_FILE
from lora_drop.run.trace.records import BASELINE, LORA_DROP

MODELS = {"llama2-7b": "LLaMA2-7B", "llama3-8b": "LLaMA3-8B", "qwen2.5-7b": "Qwen2.5-7B", "qwen2.5-14b": "Qwen2.5-14B"}
RATIOS, KS = (0.25, 0.5, 0.75), (1, 3, 5)
CYCLES, ROUNDS = 2, 3
SIZE = 2  # bytes of a bfloat16
HEADER = (
    "| shape | layers | p | k | baseline, tokens/s | LoRA-Drop | speedup | of 95 in 100 draws | bound | paper "
    "| KV saved | without a prompt | paper |"
)


def fitted(shape: str, memory: int) -> tuple[str, int]:
    """Make a shape whose weights fit into `memory` bytes; returns its name and its layers."""
    config = type(SHAPES[shape]).from_dict(SHAPES[shape].to_dict())
    whole = config.num_hidden_layers
    while ModelShape.from_config(config).params * SIZE > memory and config.num_hidden_layers > 4:
        config.num_hidden_layers //= 2
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
    layers = config.num_hidden_layers
    if layers == whole:
        return shape, layers
    name = f"{shape}-{layers}"
    SHAPES[name] = config
    return name, layers


def measured(loaded: LoadedModel, ratio: float, k: int, prompt_tokens: int) -> list[Report]:
    """Measure the rounds of one setting, after a warm-up."""
    config = LoraDropConfig(period=k + 1, drop_ratio=ratio, reuse="state", adapters="none")
    lanes = {
        BASELINE: baseline_lane(loaded.num_layers),
        LORA_DROP: LanePlan("LoRA-Drop", config, config.schedule_for(loaded.num_layers)),
    }
    ids = tokens_of_text(loaded, prompt_tokens)
    time_lanes(loaded, lanes, ids, 3)
    return [time_lanes(loaded, lanes, ids, CYCLES * (k + 1) + 1) for _ in range(ROUNDS)]


def row(loaded: LoadedModel, ratio: float, k: int, prompt_tokens: int) -> dict[str, Any]:
    """Measure one setting."""
    runs = measured(loaded, ratio, k, prompt_tokens)
    held = {name: lane.steps[-1].kv_bytes for name, lane in runs[0].lanes.items()}
    return {
        **{"reuse": "state", "drop_ratio": ratio, "period": k + 1},
        **{name: value for name, value in beside(runs, LORA_DROP).items() if name != "accepted"},
        "baseline_tokens_per_second": rate_of(runs, BASELINE),
        "lora_drop_tokens_per_second": rate_of(runs, LORA_DROP),
        "kv_saved": 1 - held[LORA_DROP] / held[BASELINE],
        "kv_limit": kv_saved(loaded.shape, runs[0].lanes[LORA_DROP].schedule, prompt_tokens=0, steps=CYCLES * (k + 1)),
    }


def rows(shapes: list[str], memory: int, prompt_tokens: int, dtype: str = "bfloat16") -> Iterator[dict[str, Any]]:
    """Measure every setting on every shape; each row comes as soon as it is measured."""
    for shape in shapes:
        name, layers = fitted(shape, memory)
        loaded = load_model(f"random:{name}", "auto", dtype)
        cost = rows_cost(loaded, LoraDropConfig(), tokens_of_text(loaded, prompt_tokens))["4"]
        about = {"model": f"random:{shape}", "dtype": dtype, "layers": layers, "of": SHAPES[shape].num_hidden_layers}
        about["row_cost"] = one_more_row(cost, 4)
        for ratio in RATIOS:
            for k in KS:
                yield about | row(loaded, ratio, k, prompt_tokens)
        del loaded  # before the next one is loaded
        gc.collect()


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    k, spread, shape = row["period"] - 1, row["speedup_interval"], row["model"].removeprefix("random:")
    of = [
        published
        for published in ROWS
        if (published.model, published.drop_ratio, published.k) == (MODELS.get(shape), row["drop_ratio"], k)
    ]
    paper = of[0] if of else None
    return (
        f"| {row['model']} | {row['layers']} of {row['of']} | {row['drop_ratio']} | {k} "
        f"| {row['baseline_tokens_per_second']:.2f} | {row['lora_drop_tokens_per_second']:.2f} | {row['speedup']:.2f} "
        f"| {'too few' if spread is None else f'{spread[0]:.2f} to {spread[1]:.2f}'} | {row['bound']:.2f} "
        f"| {f'{paper.speedup:.2f}' if paper else ''} | {row['kv_saved']:.0%} | {row['kv_limit']:.0%} "
        f"| {f'about {paper.kv_saved:.0%}' if paper else ''} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=list(MODELS), help=f"of {', '.join(SHAPES)}; all four")
    parser.add_argument("--memory", type=float, default=20, metavar="GB", help="the most that the weights may take")
    parser.add_argument("--prompt-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args()
    if unknown := set(args.shapes) - SHAPES.keys():
        sys.exit(f"no shape {', '.join(sorted(unknown))}: use {', '.join(SHAPES)}")
    device, done = resolve_device("auto"), []
    print(HEADER)
    print("|---" * (HEADER.count("|") - 1) + "|")
    for measured in rows(args.shapes, int(args.memory * 1e9), args.prompt_tokens):
        print(line(measured), flush=True)
        done.append(measured)
    if args.out:
        about: dict[str, Any] = {"source": "scripts/paper_shapes.py", "device": describe_device(device)}
        about |= {"date": datetime.now(UTC).date().isoformat(), "read_gb_per_second": read_bandwidth(device)}
        content = SHAPES_FILE.begin(about) | {"rows": done}
        write_files({args.out: json.dumps(content, indent=1, allow_nan=False) + "\n"})
    print(f"\nThe columns `paper` are {LABEL}; {torch.get_num_threads()} threads here.")


if __name__ == "__main__":
    main()
