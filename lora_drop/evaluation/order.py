"""Find a greedy order of layers to skip: `python -m lora_drop drop-order`.

Evenly spaced layers include expensive ones. Here the next layer is the one that adds least to KL(full || LoRA-Drop) at
LoRA steps, together with those already chosen, in the parallel pass of training, with single or exact refreshes. The
cost of a layer in an earlier round mostly bounds its cost now, so each round measures only the few candidates that
were cheapest so far (lazy greedy): a close guess for a fraction of the passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.logits import kl
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.models.load import LoadedModel
from lora_drop.training.distill import Text, both

CANDIDATES = 6  # most layers that a round measures


@torch.inference_mode()
def drop_order(
    loaded: LoadedModel,
    texts: list[Text],
    config: LoraDropConfig,
    bank: AdapterBank | None,
    count: int,
    candidates: int = CANDIDATES,
    progress: Callable[[int, float], None] = lambda layer, kl: None,
) -> list[dict[str, Any]]:
    """Find the first `count` layers to skip, the cheapest first.

    Args:
        texts: what to measure on; the decode steps behind each prompt count.
        config: period, rule, part, kv, refresh and range; its ratio and list have no effect.
        bank: the corrections, on the model's device; None for the untrained rule.
        progress: called with each chosen layer and the KL with it.

    Returns:
        A row a layer, `{"layer", "kl", "alone"}`: the KL at LoRA steps, in nats, of skipping it and all before it, and
        of skipping it alone.

    Raises:
        LoraDropError: `count` is not within the range, the period has no LoRA step, or a KL is not finite.
    """
    low, high = config.layers or default_range(loaded.num_layers)
    layers = range(low, high + 1)
    if not 1 <= count <= len(layers):
        raise LoraDropError(f"count must be from 1 to {len(layers)}, the layers of the range {low}-{high}.")
    if config.period < 2:
        raise LoraDropError("period must be at least 2: period 1 has no LoRA step.")
    cost = partial(_cost, loaded, texts, config, bank)
    alone = {layer: cost((layer,)) for layer in layers}
    last = dict(alone)  # cost of adding a layer when it was last measured
    chosen: list[int] = []
    rows, before = [], 0.0
    for _ in range(count):
        cheapest = sorted(last, key=last.__getitem__)[:candidates]
        costs = {layer: alone[layer] if not chosen else cost((*chosen, layer)) for layer in cheapest}
        last |= {layer: value - before for layer, value in costs.items()}
        layer = min(costs, key=costs.__getitem__)
        before = costs[layer]
        chosen.append(layer)
        del last[layer]
        rows.append({"layer": layer, "kl": before, "alone": alone[layer]})
        progress(layer, before)
    return rows


def _cost(
    loaded: LoadedModel, texts: list[Text], config: LoraDropConfig, bank: AdapterBank | None, dropped: tuple[int, ...]
) -> float:
    """KL(full || LoRA-Drop) with these layers skipped, in nats per token at LoRA steps.

    Raises:
        LoraDropError: it is not finite.
    """
    schedule = config.replace(drop_layers=dropped).schedule_for(loaded.num_layers)
    total = positions = 0.0
    for tokens, prompt_tokens in texts:
        ours, full, _ = both(loaded, tokens, prompt_tokens, schedule, bank)
        total += float(kl(full, ours).sum())
        positions += ours.shape[1]
    if not math.isfinite(total):
        raise LoraDropError(
            f"without layers {', '.join(map(str, dropped))} the KL is NaN or infinite: the model or the adapters "
            "overflow, so there is no order. Take adapters none, or try dtype float32."
        )
    return total / positions
