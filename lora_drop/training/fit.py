"""A first bank without gradient steps: each layer's correction by regression on the full model's states.

At a LoRA position the best linear correction and gate against the layer's full output are a least-squares problem.
Plain squared error would spend the rank on the stream's few outlier channels, which barely matter to the text. So the
error is weighted by the Fisher information of that output, G = E[g g^T], where g is the gradient of the log-likelihood
of a token that the model itself draws: e^T G e / 2 is the KL to second order. The truncation to rank r is the best one
in that metric (reduced-rank regression).

Each layer is fitted on the full model's states. Fitting layer after layer on the states that LoRA-Drop reaches is
worse at low drop ratios: the drift of the high ones fills the moments (docs/training-log.md).

Shapes: B batch, T tokens, N LoRA positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode import rules
from lora_drop.decode.layer import feed
from lora_drop.decode.logits import log_probs, nll
from lora_drop.training.student import Layout, at_lora, attend_first

RIDGE = 1e-3  # share of each channel's power: directions that are rare in the text are not trusted
ROUNDS = 4  # of fitting the correction and the gate in turn; a fifth changes nothing


Batch = tuple[Tensor, Layout]  # texts (B, T) with one prompt length and one period


@dataclass
class Scales:
    """The units in which a layer's correction is well conditioned.

    Attributes:
        white: (D, D); x @ white has uncorrelated channels of unit power.
        reach: (D,), root mean square of the output that the correction aims at.
    """

    white: Tensor
    reach: Tensor


@dataclass
class _Moments:
    """Second moments of one layer over LoRA positions, and G.

    x is the correction's input, y the full output minus the rule's bare output, z what the gate scales.
    """

    positions: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, pairs: tuple[str, ...], **values: Tensor | None) -> None:
        """Add products of x, y, z and g, (B, rows, D) each; z is None where the rule has no gate."""
        rows = {name: value.flatten(0, 1).float() for name, value in values.items() if value is not None}
        self.positions += len(rows["x"])
        for pair in pairs:
            left, right = pair[0], pair[1]
            if left in rows and right in rows:
                self.sums[pair] = self.sums.get(pair, 0) + (rows[left].T @ rows[right]).double()

    def mean(self, pair: str) -> Tensor:
        return self.sums[pair] / self.positions


def measure(model: PreTrainedModel, bank: AdapterBank, batches: Iterable[Batch]) -> dict[int, Scales]:
    """Measure each layer's scales alone, for a bank that is fitted already."""
    moments = {i: _Moments() for i in bank.layers}
    with torch.no_grad():
        for tokens, layout in batches:
            inputs, goals, _ = _pass(model, bank, tokens, layout)
            for i, goal in goals.items():
                moments[i].add(("xx", "yy"), **_regression(layout, bank.reuse, inputs[i], goal))
        return {i: _scales(layer_moments) for i, layer_moments in moments.items()}


def fit(model: PreTrainedModel, bank: AdapterBank, batches: Iterable[Batch]) -> dict[int, Scales]:
    """Set A, B and gate of every layer of the bank.

    Args:
        bank: float32, on the model's device; its tensors are written in place.
        batches: with at least one LoRA position; the model's weights need no gradients.

    Returns:
        Each layer's scales.
    """
    moments = {i: _Moments() for i in bank.layers}
    generator = torch.Generator(device=model.device).manual_seed(0)
    for tokens, layout in batches:
        _read(model, bank, tokens, layout, moments, generator)
    with torch.no_grad():
        return {i: _solve(i, layer_moments, bank) for i, layer_moments in moments.items()}


@torch.enable_grad()
def _read(
    model: PreTrainedModel,
    bank: AdapterBank,
    tokens: Tensor,
    layout: Layout,
    moments: dict[int, _Moments],
    generator: torch.Generator,
) -> None:
    """Run the full model on a batch, forward and backward, and add to the moments of the bank's layers."""
    inputs, goals, states = _pass(model, bank, tokens, layout)
    logits = model.get_output_embeddings()(states).float().flatten(0, 1)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    loss = nll(log_probs(logits), drawn).sum()
    gradients = torch.autograd.grad(loss, list(goals.values()))
    for i, g in zip(goals, gradients, strict=True):
        pairs = ("xx", "xy", "xz", "yy", "yz", "zz", "gg")
        rows = _regression(layout, bank.reuse, inputs[i], goals[i].detach())
        moments[i].add(pairs, **rows, g=g[:, layout.full :])


def _regression(layout: Layout, reuse: str, h: Tensor, goal: Tensor) -> dict[str, Tensor | None]:
    """x, y and z of `_Moments` for a layer with input h and f(h) `goal`, (B, T, D) both."""
    lora, anchor, x = at_lora(layout, reuse, h, goal[:, : layout.full])
    y = goal[:, layout.full :] - rules.reused(reuse, lora, anchor, gate=0.0)
    return {"x": x, "y": y, "z": anchor if reuse == "residual" else None}


def _pass(
    model: PreTrainedModel, bank: AdapterBank, tokens: Tensor, layout: Layout
) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
    """Run the full model on a batch: the bank's layers' inputs and f(h), and the normed last states."""
    body = model.model
    # Gradients of the embeddings make the graph, as the backbone's weights may be frozen.
    h = body.embed_tokens(tokens[:, layout.order]).detach().requires_grad_()
    rope = body.rotary_emb(h, position_ids=layout.order[None])
    inputs, goals = {}, {}
    for i, layer in enumerate(body.layers):
        u = attend_first(layer, h, rope, layout)
        output = feed(layer, u)
        if i in bank.a:
            inputs[i], goals[i] = h.detach(), rules.replaced(bank.part, u, output)
        h = output
    return inputs, goals, body.norm(h)


def _solve(i: int, moments: _Moments, bank: AdapterBank) -> Scales:
    """Solve least squares for layer i from its moments; write its A, B and gate."""
    xx, metric = _input(moments), moments.mean("gg")
    metric = metric + torch.diag(RIDGE * metric.diagonal() + 1e-9 * metric.diagonal().mean() + 1e-30)
    to_y = torch.linalg.solve(xx, moments.mean("xy")).T  # (D, D): y ~ to_y @ x
    gate, w = bank.gate[i].double(), to_y
    if "xz" in moments.sums:
        to_z = torch.linalg.solve(xx, moments.mean("xz")).T
        zz, yz, xz = (moments.mean(pair) for pair in ("zz", "yz", "xz"))
        normal = metric * zz
        normal = normal + torch.diag(RIDGE * normal.diagonal() + 1e-30)
        for _ in range(ROUNDS):
            w = to_y - to_z * gate[:, None]
            gate = torch.linalg.solve(normal, (metric @ (yz - w @ xz)).diagonal())
        w = to_y - to_z * gate[:, None]
    white = _power(xx, -0.5)
    left, sizes, right = torch.linalg.svd(_power(metric, 0.5) @ w @ _power(xx, 0.5))
    r = bank.rank
    count = min(r, len(sizes))
    b = (_power(metric, -0.5) @ left[:, :count]) * sizes[:count] * (r / bank.alpha)
    bank.a[i][:count] = (right[:count] @ white).to(bank.a[i])
    bank.b[i].zero_()[:, :count] = b.to(bank.b[i])
    bank.gate[i].copy_(gate)
    return _scales(moments)


def _input(moments: _Moments) -> Tensor:
    """E[x x^T] with a ridge, so that a channel that is always zero can be divided by."""
    xx = moments.mean("xx")
    return xx + torch.diag(RIDGE * xx.diagonal() + 1e-9 * xx.diagonal().mean() + 1e-12)


def _scales(moments: _Moments) -> Scales:
    power = moments.mean("yy").diagonal()
    reach = power.clamp_min(1e-6 * power.mean() + 1e-12).sqrt()
    return Scales(_power(_input(moments), -0.5).float(), reach.float())


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric positive matrix to a power."""
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp_min(values[-1] * 1e-12).pow(exponent)) @ vectors.T
    return power
