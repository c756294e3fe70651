"""The paper's settings on the shapes of its four models, as Markdown: `python -m scripts.paper_shapes`.

Random weights in bfloat16: speed and memory do not depend on their values. Each setting runs two refresh cycles a
lane, the lanes a step each in turn, three rounds after a warm-up. A model that does not fit into `--memory` loses half
of its layers, until it does; its row says so, and the layers skipped are then those of the shorter model. The rule is
the paper's (`state`), without adapters: of rank 16 they are a thousandth of the bytes.

For Llama-3-8B on two cores that read 30 GB/s a full step takes half a second, and all nine settings ten minutes.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator

import torch

from lora_drop.evaluation.measure.bench import beside, rate_of, text_of, time_lanes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import ModelShape, kv_saved
from lora_drop.method.paper import LABEL, ROWS, PaperRow
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.random_weights import SHAPES
from lora_drop.run.report.report import Report
from lora_drop.run.request import LanePlan, baseline_lane
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
    ids = text_of(loaded, prompt_tokens)
    time_lanes(loaded, lanes, ids, 3)
    return [time_lanes(loaded, lanes, ids, CYCLES * (k + 1) + 1) for _ in range(ROUNDS)]


def row(loaded: LoadedModel, layers: str, ratio: float, k: int, prompt_tokens: int, paper: PaperRow | None) -> str:
    """Measure one line of the table."""
    runs = measured(loaded, ratio, k, prompt_tokens)
    base, ours = rate_of(runs, BASELINE), rate_of(runs, LORA_DROP)
    figures = beside(runs, LORA_DROP)
    spread = figures["speedup_interval"]
    held = {name: lane.steps[-1].kv_bytes for name, lane in runs[0].lanes.items()}
    limit = kv_saved(loaded.shape, runs[0].lanes[LORA_DROP].schedule, prompt_tokens=0, steps=CYCLES * (k + 1))
    return (
        f"| {loaded.id} | {layers} | {ratio} | {k} | {base:.2f} | {ours:.2f} | {figures['speedup']:.2f} "
        f"| {'too few' if spread is None else f'{spread[0]:.2f} to {spread[1]:.2f}'} | {figures['bound']:.2f} "
        f"| {f'{paper.speedup:.2f}' if paper else ''} | {1 - held[LORA_DROP] / held[BASELINE]:.0%} | {limit:.0%} "
        f"| {f'about {paper.kv_saved:.0%}' if paper else ''} |"
    )


def lines(shapes: list[str], memory: int, prompt_tokens: int, dtype: str = "bfloat16") -> Iterator[str]:
    """Measure the table; each line comes as soon as it is measured."""
    yield HEADER
    yield "|---" * (HEADER.count("|") - 1) + "|"
    for shape in shapes:
        name, layers = fitted(shape, memory)
        kept = f"{layers} of {SHAPES[shape].num_hidden_layers}"
        loaded = load_model(f"random:{name}", "auto", dtype)
        for ratio in RATIOS:
            for k in KS:
                of = [one for one in ROWS if (one.model, one.drop_ratio, one.k) == (MODELS.get(shape), ratio, k)]
                yield row(loaded, kept, ratio, k, prompt_tokens, of[0] if of else None)
        del loaded  # before the next one is loaded
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=list(MODELS), help=f"of {', '.join(SHAPES)}; all four")
    parser.add_argument("--memory", type=float, default=20, metavar="GB", help="the most that the weights may take")
    parser.add_argument("--prompt-tokens", type=int, default=16, metavar="N")
    args = parser.parse_args()
    if unknown := set(args.shapes) - SHAPES.keys():
        sys.exit(f"no shape {', '.join(sorted(unknown))}: use {', '.join(SHAPES)}")
    for line in lines(args.shapes, int(args.memory * 1e9), args.prompt_tokens):
        print(line, flush=True)
    print(f"\nThe columns `paper` are {LABEL}; {torch.get_num_threads()} threads here.")


if __name__ == "__main__":
    main()
