"""The correction's parts beyond the paper's as training starts from them: they change nothing yet.

Shapes: D hidden size, M intermediate size, b width of a bottleneck, r_k rank of a kept layer's, K and N a projection's
input and output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.correction import PROJECTIONS
from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel

# How many times faster than A and B of `linear`, in units of their matrices, fresh parts are learned: trials found 1
# far too slow (docs/training-log.md).
PACE, PACE_B = 6.0, 2.0


def add_parts(
    bank: AdapterBank,
    model: PreTrainedModel,
    skipped: Sequence[int],
    mlp_width: int,
    kept_rank: int,
    tokens: Tensor,
) -> AdapterBank:
    """A bank with fresh parts where it has none yet.

    Args:
        skipped: the layers that may be skipped: they get a bottleneck. Every layer above the lowest of them may run
            behind a skipped one: it gets a low-rank change.
        mlp_width, kept_rank: b and r_k; 0: not this part.
        tokens: (B, T) of text, to find the most important neurons with.
    """
    mlp, kept = bank.mlp, bank.kept
    if mlp_width and not mlp:
        mlp = _bottlenecks(model, sorted(skipped), mlp_width, tokens)
    if kept_rank and not kept:
        kept = {i: _low_rank(model, i, kept_rank) for i in range(min(skipped) + 1, len(model.model.layers))}
    return dataclasses.replace(bank, mlp=mlp, kept=kept)


def continued(own: AdapterBank, bank: AdapterBank, name: str, loaded: LoadedModel) -> AdapterBank:
    """A bank to go on from as a run's own: float32, on the model's device, with the parts that it lacks.

    Args:
        own: what the run would start from without it.
        name: the bank's, for a message.

    Raises:
        LoraDropError: it is of another model, rule, rank or set of layers.
    """
    shape = {"num_layers": loaded.num_layers, "hidden_size": loaded.shape.hidden_size}
    bank.check(**shape, revision=loaded.revision, reuse=own.reuse, part=own.part, name=name)
    same = [("rank", own.rank, bank.rank), ("layers", own.layers, bank.layers)]
    same += [("mlp_width", own.mlp_width, bank.mlp_width)] if bank.mlp else []
    same += [("kept_rank", own.kept_rank, bank.kept_rank)] if bank.kept else []
    for what, mine, its in same:
        if mine != its:
            raise LoraDropError(f"adapters {name} have {what} {its}, this run has {mine}: use the same.")
    # Only the product alpha / r B A counts: its alpha may be another.
    b = {i: t.float() * (bank.alpha / own.alpha) for i, t in bank.b.items()}
    parts = {part: getattr(bank, part) or getattr(own, part) for part in ("mlp", "kept")}
    return dataclasses.replace(own, a=bank.a, b=b, gate=bank.gate, **parts).to(loaded.device, torch.float32)


def units(bank: AdapterBank, model: PreTrainedModel) -> list[float]:
    """The scale of each tensor of the parts, in the order of `Correction.mapped`, after a, b and gate.

    In these units a step of the learning rate changes a matrix by a share of the frozen one that it adds to.
    """
    found: list[float] = []
    for i in bank.mlp:
        weights = _projections(model, i)
        found += [PACE * _size(weights["gate_up"]), PACE * _size(weights["down"])]
    for i, pairs in bank.kept.items():
        for name, (a, _) in pairs.items():
            rank, inner = a.shape
            found += [PACE * inner**-0.5, PACE_B * _size(_projections(model, i)[name]) * (inner / rank) ** 0.5]
    return found


@torch.no_grad()
def _bottlenecks(model: PreTrainedModel, layers: list[int], width: int, tokens: Tensor) -> dict[int, Any]:
    """Each layer's `width` most important neurons: the mean size of what one gives, on text. Their output is zero."""
    power: dict[int, Tensor] = {}
    hooks = []
    for i in layers:

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], i: int = i) -> None:
            power[i] = power.get(i, 0) + inputs[0].float().abs().sum((0, 1))  # (M,)

        hooks.append(model.model.layers[i].mlp.down_proj.register_forward_pre_hook(keep))
    try:
        for row in tokens.split(1):  # all at once would take more memory than a batch
            model.model(row)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for i in layers:
        mlp: Any = model.model.layers[i].mlp
        best = (power[i] * mlp.down_proj.weight.float().norm(dim=0)).topk(min(width, len(power[i]))).indices
        gate_up = torch.cat((mlp.gate_proj.weight[best], mlp.up_proj.weight[best])).float()
        found[i] = gate_up, gate_up.new_zeros(gate_up.shape[1], len(best))
    return found


def _low_rank(model: PreTrainedModel, layer: int, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A layer's changes: A small and random, B zero."""
    pairs = {}
    for name, linears in _projections(model, layer).items():
        inner, outer = linears[0].in_features, sum(linear.out_features for linear in linears)
        a = torch.randn(rank, inner).to(linears[0].weight.device) * inner**-0.5
        pairs[name] = a, a.new_zeros(outer, rank)
    return pairs


def _projections(model: PreTrainedModel, layer: int) -> dict[str, tuple[nn.Linear, ...]]:
    """The layer's matrices by the names of `PROJECTIONS`."""
    attention, mlp = model.model.layers[layer].self_attn, model.model.layers[layer].mlp
    sides = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    return dict(zip(PROJECTIONS, sides, strict=True))


def _size(linears: tuple[nn.Linear, ...]) -> float:
    """Root mean square of the entries of matrices side by side."""
    return float(torch.cat([linear.weight for linear in linears]).float().square().mean().sqrt())
