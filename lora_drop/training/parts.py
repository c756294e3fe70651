"""What training moves: the parts of a bank as it starts from them, their parameters, and the screened head.

Fresh parts change nothing yet: the second matrix of each is zero.

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
from lora_drop.decode.head import ScreenedHead, screen
from lora_drop.decode.layer import projections
from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel
from lora_drop.training.fit import Scales

# How many times faster than A and B of `linear`, in units of their matrices, fresh parts are learned: trials found 1
# far too slow (docs/training-log.md).
PACE, PACE_B = 6.0, 2.0
HEAD_WINDOWS, HEAD_BATCH = 64, 8  # windows that a preview is made from, and how many are run at once


def add_parts(
    bank: AdapterBank,
    model: PreTrainedModel,
    skipped: Sequence[int],
    mlp_width: int,
    kept_rank: int,
    tokens: Tensor,
) -> AdapterBank:
    """Add fresh parts to a bank that has none yet.

    Args:
        skipped: layers that may be skipped, which get a bottleneck. Every layer above the lowest of them may run
            behind a skipped one and gets a low-rank change.
        mlp_width: b; 0 leaves the part out.
        kept_rank: r_k; 0 leaves the part out.
        tokens: (B, T) of text, to find the most important neurons with.
    """
    mlp, kept = bank.mlp, bank.kept
    if mlp_width and not mlp:
        mlp = _bottlenecks(model, sorted(skipped), mlp_width, tokens)
    if kept_rank and not kept:
        kept = {i: _low_rank(model, i, kept_rank) for i in range(min(skipped) + 1, len(model.model.layers))}
    return dataclasses.replace(bank, mlp=mlp, kept=kept)


def continued(own: AdapterBank, bank: AdapterBank, name: str, loaded: LoadedModel) -> AdapterBank:
    """Make a run's starting bank from a trained one: float32, on the model's device, with the parts that it lacks.

    Args:
        own: what the run would start from otherwise.
        name: the bank's, for messages.

    Raises:
        LoraDropError: the bank is of another model, rule, rank or set of layers, or a part of it.
    """
    bank.check(loaded, name, own.reuse, own.part)
    same = ["rank", "layers", *(["mlp_width"] if bank.mlp else []), *(["kept_rank"] if bank.kept else [])]
    for field in same:
        mine, theirs = getattr(own, field), getattr(bank, field)
        if mine != theirs:
            raise LoraDropError(f"adapters {name} have {field} {theirs}, this run has {mine}: use the same.")
    for part in ("mlp", "kept"):
        mine, theirs = sorted(getattr(own, part)), sorted(getattr(bank, part))
        if theirs and theirs != mine:
            raise LoraDropError(
                f"adapters {name} have {part} in layers {theirs}, this run in {mine}: give the drop_order of their "
                "training."
            )
    # Only the product alpha / r B A counts, so their alpha may differ.
    b = {i: t.float() * (bank.alpha / own.alpha) for i, t in bank.b.items()}
    parts = {part: getattr(bank, part) or getattr(own, part) for part in ("mlp", "kept")}
    return dataclasses.replace(own, a=bank.a, b=b, gate=bank.gate, **parts).to(loaded.device, torch.float32)


# ---- parameters -----------------------------------------------------------------------------------------------------


def parameters_of(bank: AdapterBank, scales: dict[int, Scales], units: list[float]) -> list[Tensor]:
    """Parameters of a bank, each in units in which one learning rate suits them all.

    A is learned as `A = A' @ white` and B as `B = reach * B'` (`fit.Scales`): in the stream's own units a few outlier
    channels would set the pace. The parts' tensors are in the `units` of the function below.

    Returns:
        All A, all B, all gates, then the parts, in the order of `Correction.mapped`.
    """
    tensors: list[Tensor] = []
    bank.mapped(lambda t: tensors.append(t) or t)  # type: ignore[func-returns-value]
    parts = tensors[3 * len(bank.a) :]
    parameters = [
        *(torch.linalg.solve(scales[i].white, a, left=False) for i, a in bank.a.items()),
        *(b / scales[i].reach[:, None] for i, b in bank.b.items()),
        *(gate.clone() for gate in bank.gate.values()),
        *(t / unit for t, unit in zip(parts, units, strict=True)),
    ]
    return [tensor.requires_grad_() for tensor in parameters]


def bank_of(parameters: list[Tensor], like: AdapterBank, scales: dict[int, Scales], units: list[float]) -> AdapterBank:
    """Make the bank of parameters, with all else from `like`; gradients of its tensors reach them."""
    layers, n = list(like.a), len(like.a)
    a, b, gate, parts = parameters[:n], parameters[n : 2 * n], parameters[2 * n : 3 * n], parameters[3 * n :]
    tensors = iter(
        [
            *(t @ scales[i].white for i, t in zip(layers, a, strict=True)),
            *(t * scales[i].reach[:, None] for i, t in zip(layers, b, strict=True)),
            *gate,
            *(t * unit for t, unit in zip(parts, units, strict=True)),
        ]
    )
    return dataclasses.replace(like, **like.mapped(lambda _: next(tensors)))


def units(bank: AdapterBank, model: PreTrainedModel) -> list[float]:
    """Scale of each tensor of the parts, in the order of `Correction.mapped`, after a, b and gate.

    In these units a step of the learning rate changes a matrix by a share of the frozen one that it adds to.
    """
    scales: list[float] = []
    for i in bank.mlp:
        weights = projections(model.model.layers[i])
        scales += [PACE * _size(weights["gate_up"]), PACE * _size(weights["down"])]
    for i, pairs in bank.kept.items():
        for name, (a, _) in pairs.items():
            rank, inner = a.shape
            size = _size(projections(model.model.layers[i])[name])
            scales += [PACE * inner**-0.5, PACE_B * size * (inner / rank) ** 0.5]
    return scales


# ---- the parts themselves -------------------------------------------------------------------------------------------


@torch.no_grad()
def _bottlenecks(model: PreTrainedModel, layers: list[int], width: int, tokens: Tensor) -> dict[int, Any]:
    """The `width` most important neurons of each layer's MLP by the mean size of their output on text.

    Their down matrix is zero.
    """
    power: dict[int, Tensor] = {}
    hooks = []
    for i in layers:

        def add(_: nn.Module, inputs: tuple[Tensor, ...], i: int = i) -> None:
            power[i] = power.get(i, 0) + inputs[0].float().abs().sum((0, 1))  # (M,)

        hooks.append(model.model.layers[i].mlp.down_proj.register_forward_pre_hook(add))
    try:
        for row in tokens.split(1):  # all at once would take more memory than a batch
            model.model(row)
    finally:
        for hook in hooks:
            hook.remove()
    bottlenecks = {}
    for i in layers:
        mlp: Any = model.model.layers[i].mlp
        best = (power[i] * mlp.down_proj.weight.float().norm(dim=0)).topk(min(width, len(power[i]))).indices
        gate_up = torch.cat((mlp.gate_proj.weight[best], mlp.up_proj.weight[best])).float()
        bottlenecks[i] = gate_up, gate_up.new_zeros(gate_up.shape[1], len(best))
    return bottlenecks


def _low_rank(model: PreTrainedModel, layer: int, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Changes of a layer's projections: A small and random, B zero."""
    pairs = {}
    for name, linears in projections(model.model.layers[layer]).items():
        inner, outer = linears[0].in_features, sum(linear.out_features for linear in linears)
        a = torch.randn(rank, inner).to(linears[0].weight.device) * inner**-0.5
        pairs[name] = a, a.new_zeros(outer, rank)
    return pairs


def _size(linears: tuple[nn.Linear, ...]) -> float:
    """Root mean square of the entries of matrices side by side."""
    return float(torch.cat([linear.weight for linear in linears]).float().square().mean().sqrt())


@torch.no_grad()
def screened_head(loaded: LoadedModel, windows: Tensor, rank: int, best: int) -> ScreenedHead:
    """Make the preview of a model's head that is best for its normed last states on text; see `decode.head`.

    Args:
        windows: (N, T) tokens, of which evenly spread ones are read: the preview suits the languages and kinds of text
            that it was made from.
        rank: R of `decode.head`; at most what the head has.
        best: N of it, the same.
    """
    head = loaded.model.get_output_embeddings().weight
    moment = torch.zeros(head.shape[1], head.shape[1], dtype=torch.float64)
    windows = windows[:: -(-len(windows) // HEAD_WINDOWS)]
    for batch in windows.split(HEAD_BATCH):
        states = loaded.model.model(batch.to(loaded.device)).last_hidden_state.flatten(0, 1).float()
        moment += (states.T @ states).double().cpu()
    moment /= windows.numel()
    return screen(head.float().cpu(), moment, min(rank, len(moment)), min(best, len(head)))
