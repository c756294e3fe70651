"""Entropy, divergence, agreement and likelihood of logits, in nats and at temperature 1.

The measures of two models take log-probabilities, so that a caller of several of them computes the softmax once.

Shapes: V vocabulary; `...` any leading ones (a batch, a text's tokens).
"""

from __future__ import annotations

from torch import Tensor


def log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) of logits (..., V), in float32."""
    return logits.float().log_softmax(-1)


def entropy(logits: Tensor) -> float:
    """Entropy of logits (1, V), in nats."""
    logs = log_probs(logits)
    return float(-(logs.exp() * logs).sum())


def kl(full: Tensor, ours: Tensor) -> Tensor:
    """KL(full || ours), (...), of log-probabilities (..., V)."""
    # Where both are equal, rounding can leave a tiny negative sum.
    return (full.exp() * (full - ours)).sum(-1).clamp_min(0)


def agreement(full: Tensor, ours: Tensor) -> Tensor:
    """True where both have the same most likely token, (...) bool, from logits or log-probabilities (..., V)."""
    return full.argmax(-1) == ours.argmax(-1)


def nll(logs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (...) of target tokens (...) under log-probabilities `logs` (..., V)."""
    return -logs.gather(-1, targets[..., None])[..., 0]


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Most likely tokens of each row of logits (rows, V), in descending order: ids and probabilities (rows, count)."""
    logits = logits.float()
    values, indices = logits.topk(min(count, logits.shape[-1]), -1)
    return indices, (values - logits.logsumexp(-1, keepdim=True)).exp()
