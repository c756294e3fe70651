"""A first bank without gradient steps: each layer's correction by regression on the full model's states.

At a LoRA position the best linear correction and gate against the layer's full output are a least-squares problem.
Plain squared error would spend the rank on the stream's few outlier channels, which barely matter to the text. So the
error is weighted by the Fisher information of that output, G = E[g g^T] with g the gradient of the log-likelihood of a
token that the model itself draws: half of e^T G e is the KL to second order. The truncation to rank r is the best one
in that metric (reduced-rank regression).

Each layer is fitted on the full model's states. Fitting layer after layer on the states that LoRA-Drop reaches was
tried and is worse at low drop ratios: the drift of the high ones fills the moments (docs/training-log.md).

Shapes: B batch, T tokens, N LoRA positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.logits import log_probs, nll
from lora_drop.training.student import Layout, attend, feed, terms

RIDGE = 1e-3  # of each channel's own power: directions that the text hardly shows are not trusted
ROUNDS = 4  # correction and gate in turn; the fourth changes nothing that shows


@dataclass(frozen=True)
class Batch:
    """Texts (B, T) that share a prompt's length and a period."""

    tokens: Tensor
    prompt_tokens: int
    period: int


@dataclass
class Scales:
    """The units in which a layer's correction is well conditioned.

    Attributes:
        white: (D, D), turns the correction's input into uncorrelated channels of unit power: x @ white.
        reach: (D,), root mean square of what the correction has to give.
    """

    white: Tensor
    reach: Tensor


@dataclass
class _Moments:
    """Of one layer: second moments over LoRA positions, and G.

    x is the correction's input, y what is missing of the full output, z what the gate scales.
    """

    positions: int = 0
    tokens: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, pairs: tuple[str, ...], **given: Tensor | None) -> None:
        """Add products of x, y, z and g, each (B, rows, D), z being None where the rule has no gate."""
        rows = {name: value.flatten(0, 1).float() for name, value in given.items() if value is not None}
        self.positions += len(rows["x"])
        self.tokens += len(rows.get("g", ()))
        for pair in pairs:
            one, other = pair[0], pair[1]
            if one in rows and other in rows:
                self.sums[pair] = self.sums.get(pair, 0) + (rows[one].T @ rows[other]).double()

    def mean(self, pair: str) -> Tensor:
        return self.sums[pair] / (self.tokens if pair == "gg" else self.positions)


def measure(model: PreTrainedModel, bank: AdapterBank, batches: list[Batch]) -> dict[int, Scales]:
    """Each layer's scales alone, for a bank that is fitted already: without gradients and regression."""
    moments = {i: _Moments() for i in bank.layers}
    with torch.no_grad():
        for batch in batches:
            layout, entered, reached, _ = _pass(model, bank, batch)
            for i, goal in reached.items():
                base, _, x = terms(layout, bank.reuse, entered[i], goal[:, : layout.full])
                moments[i].add(("xx", "yy"), x=x, y=goal[:, layout.full :] - base)
        return {i: _scales(found) for i, found in moments.items()}


def fit(model: PreTrainedModel, bank: AdapterBank, batches: list[Batch]) -> dict[int, Scales]:
    """Set A, B and gate of every layer of the bank.

    Args:
        bank: float32, on the model's device; its tensors are written in place.
        batches: at least one, with a LoRA position at least; the model's weights need no gradients.

    Returns:
        Each layer's scales.
    """
    moments = {i: _Moments() for i in bank.layers}
    generator = torch.Generator(device=model.device).manual_seed(0)
    for batch in batches:
        _read(model, bank, batch, moments, generator)
    with torch.no_grad():
        return {i: _solve(i, found, bank) for i, found in moments.items()}


@torch.enable_grad()
def _read(
    model: PreTrainedModel, bank: AdapterBank, batch: Batch, moments: dict[int, _Moments], generator: torch.Generator
) -> None:
    """One batch through the full model, forth and back, into the moments of the bank's layers."""
    layout, entered, reached, states = _pass(model, bank, batch)
    logits = model.get_output_embeddings()(states).float().flatten(0, 1)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    loss = nll(log_probs(logits), drawn).sum()
    gradients = torch.autograd.grad(loss, list(reached.values()))
    for i, g in zip(reached, gradients, strict=True):
        goal = reached[i].detach()
        base, added, x = terms(layout, bank.reuse, entered[i], goal[:, : layout.full])
        pairs = ("xx", "xy", "xz", "yy", "yz", "zz", "gg")
        moments[i].add(pairs, x=x, y=goal[:, layout.full :] - base, z=added, g=g)


def _pass(
    model: PreTrainedModel, bank: AdapterBank, batch: Batch
) -> tuple[Layout, dict[int, Tensor], dict[int, Tensor], Tensor]:
    """A batch through the full model: its layout, what the bank's layers read and give, and the normed last states."""
    body = model.model
    layout = Layout.of(batch.prompt_tokens, batch.tokens.shape[1], batch.period, batch.tokens.device)
    # The embeddings ask for gradients so that there is a graph: the backbone's own weights may be frozen.
    h = body.embed_tokens(batch.tokens[:, layout.order]).detach().requires_grad_()
    rope = body.rotary_emb(h, position_ids=layout.order[None])
    entered, reached = {}, {}
    for i, layer in enumerate(body.layers):
        u = attend(layer, h, rope, layout.visible)
        out = feed(layer, u)
        if i in bank.a:
            entered[i], reached[i] = h.detach(), u if bank.part == "attention" else out
        h = out
    return layout, entered, reached, body.norm(h)


def _solve(i: int, moments: _Moments, bank: AdapterBank) -> Scales:
    """Least squares for layer i from its moments; writes its A, B and gate."""
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
    keep = min(r, len(sizes))
    b = (_power(metric, -0.5) @ left[:, :keep]) * sizes[:keep] * (r / bank.alpha)
    bank.a[i][:keep] = (right[:keep] @ white).to(bank.a[i])
    bank.b[i].zero_()[:, :keep] = b.to(bank.b[i])
    bank.gate[i].copy_(gate)
    return _scales(moments)


def _input(moments: _Moments) -> Tensor:
    """E[x x^T]; the least ridge keeps a channel that is always zero from being divided by."""
    xx = moments.mean("xx")
    return xx + torch.diag(RIDGE * xx.diagonal() + 1e-9 * xx.diagonal().mean() + 1e-12)


def _scales(moments: _Moments) -> Scales:
    power = moments.mean("yy").diagonal()
    reach = power.clamp_min(1e-6 * power.mean() + 1e-12).sqrt()
    return Scales(_power(_input(moments), -0.5).float(), reach.float())


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A symmetric positive matrix to a power."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(values[-1] * 1e-12).pow(exponent)) @ vectors.T
