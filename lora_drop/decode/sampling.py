"""Sampling of tokens from logits.

The noise is keyed by (seed, step, token id), so the same logits at the same step give the same token in every lane, in
any order and any number of times. A lane can therefore ask later which token the full model would have drawn at a
step, and accept or reject its draft.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 256  # a nucleus is rarely larger
MIN_TEMPERATURE = 1e-6  # below it sampling is greedy in float32
_WORD = 2**64


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: greedy at temperature 0, otherwise softmax over the top-p nucleus."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def draw(logits: Tensor, sampling: Sampling, step: int) -> Tensor:
    """Draw a token (B, 1) from logits (B, V), row b for step `step` + b."""
    if sampling.temperature == 0:
        return _best(logits)
    # Broken logits may give any token: the lane reports them.
    logits = logits.float().nan_to_num()
    # Relative to the largest, and divided by MIN_TEMPERATURE at least, so that nothing overflows.
    probs = ((logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, MIN_TEMPERATURE)).softmax(-1)
    if sampling.top_p < 1:
        probs = probs.masked_fill(~_nucleus(probs, sampling.top_p), 0)
    # The first to ring of exponential clocks with these rates is a draw from them (the Gumbel-max trick).
    return (probs / _waits(sampling.seed, step, probs)).argmax(-1, keepdim=True)


def _best(logits: Tensor) -> Tensor:
    """Index of the largest logit (B, 1). On a CPU numpy is ten times as fast as torch."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1, keepdims=True))
    return logits.argmax(-1, keepdim=True)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Mask (B, V) of the nucleus: the most likely tokens, of equal ones the first, until their sum reaches `top_p`."""
    vocabulary = probs.shape[-1]
    count = vocabulary if probs.device.type == "cuda" else min(CANDIDATES, vocabulary)  # to look would be to wait
    largest = probs.topk(count).values  # (B, count), descending; nearly always enough
    while count < vocabulary and bool((largest.sum(-1) < top_p).any()):
        count = min(16 * count, vocabulary)
        largest = probs.topk(count).values
    filled = (largest.cumsum(-1) - largest < top_p).sum(-1, keepdim=True).clamp_min(1)  # (B, 1), size of the nucleus
    last = largest.gather(-1, filled - 1)
    above, equal = probs > last, probs == last
    return above | (equal & (equal.cumsum(-1) <= filled - above.sum(-1, keepdim=True)))


def _waits(seed: int, step: int, like: Tensor) -> Tensor:
    """Exponential noise (B, V), row b for step `step` + b: a hash of (seed, step, token id), equal on every device."""
    ids = torch.arange(like.shape[-1], dtype=torch.int32, device=like.device)
    keys = [_mixed(seed, step + row) for row in range(len(like))]
    # Numbers in a kernel's arguments: a tensor of them would be copied, and a GPU waited for.
    x = torch.stack([(ids + (key & 0x7FFFFFFF)).bitwise_xor_(key >> 31 & 0x7FFFFFFF) for key in keys])
    for shift, mask, factor in ((16, 0xFFFF, 0x21F0AAAD), (15, 0x1FFFF, 0x735A2D97)):  # C. Wellons' hash of 32 bits
        x ^= (x >> shift).bitwise_and_(mask)
        x *= factor  # wraps around
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    # log1p, as small ones win the race and need their precision.
    uniform = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2**-31)
    return uniform.neg_().log1p_().neg_()


def _mixed(seed: int, step: int) -> int:
    """Key of 64 bits for (seed, step), by splitmix64; neighbouring pairs share nothing."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return z ^ (z >> 31)
