"""What logits say: entropy, divergence, agreement, likelihood. The one place that computes them.

All in nats, of the softmax unscaled by a temperature. The measures of two models take log-probabilities, so that a
caller who needs several of them pays for the softmax once.

Shapes: V vocabulary; `...` any leading ones (a batch, a text's tokens).
"""

from __future__ import annotations

from torch import Tensor


def log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) of logits (..., V), in float32."""
    return logits.float().log_softmax(-1)


def entropy(logits: Tensor) -> float:
    """Entropy of logits (1, V)."""
    logs = log_probs(logits)
    return float(-(logs.exp() * logs).sum())


def kl(full: Tensor, lane: Tensor) -> Tensor:
    """KL(full || lane), (...), from the log-probabilities of both, (..., V)."""
    # Rounding can leave a tiny negative sum where both are equal; a divergence is not negative.
    return (full.exp() * (full - lane)).sum(-1).clamp_min(0)


def agreement(full: Tensor, lane: Tensor) -> Tensor:
    """Whether both have the same most probable token, (...) bool, from logits or log-probabilities (..., V)."""
    return full.argmax(-1) == lane.argmax(-1)


def nll(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (...) of target tokens (...) under log-probabilities (..., V)."""
    return -log_probs.gather(-1, targets[..., None])[..., 0]


def likeliest(logits: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The most probable tokens of each row of logits (rows, V), the likeliest first: (token id, probability)."""
    found = logits.float().topk(count, -1)
    chances = (found.values - logits.float().logsumexp(-1, keepdim=True)).exp()
    rows = zip(found.indices.tolist(), chances.tolist(), strict=True)
    return [list(zip(ids, row, strict=True)) for ids, row in rows]
