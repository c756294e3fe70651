"""How a token is drawn from logits.

Sampling draws with noise that is keyed by (seed, step, token id): the same logits at the same step give the same token
in every lane, however often and in whatever order they are drawn. What the full model would have drawn at a step can
so be asked later, which is how `accept` judges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 256  # tokens that a nucleus rarely exceeds
MIN_TEMPERATURE = 1e-6  # below it sampling is greedy to the last bit of float32
_WORD = 2**64


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits: greedy at temperature 0, else softmax over the top-p nucleus."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def draw(logits: Tensor, sampling: Sampling, step: int) -> Tensor:
    """A token (B, 1) from logits (B, V), row b of which belongs to step `step` + b."""
    if sampling.temperature == 0:
        return _best(logits)
    # Of broken logits any token will do: the lane reports them.
    logits = logits.float().nan_to_num()
    # From the largest down, and by no less than MIN_TEMPERATURE: nothing overflows however small the temperature is.
    probs = ((logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, MIN_TEMPERATURE)).softmax(-1)
    if sampling.top_p < 1:
        probs = probs.masked_fill(~_nucleus(probs, sampling.top_p), 0)
    # Of exponential clocks with these rates the first to ring is a draw from them (the Gumbel-max trick).
    return (probs / _waits(sampling.seed, step, probs)).argmax(-1, keepdim=True)


def _best(logits: Tensor) -> Tensor:
    """The largest one's place (B, 1). numpy finds it ten times as fast as torch does on a CPU."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1, keepdims=True))
    return logits.argmax(-1, keepdim=True)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Whether a token of probs (B, V) stays: from the most probable on, of equal ones the first first, those before
    which the nucleus is not full yet."""
    vocabulary, count = probs.shape[-1], min(CANDIDATES, probs.shape[-1])
    largest = probs.topk(count).values  # (B, count), descending; nearly always enough of them
    while count < vocabulary and bool((largest.sum(-1) < top_p).any()):
        count = min(16 * count, vocabulary)
        largest = probs.topk(count).values
    filled = (largest.cumsum(-1) - largest < top_p).sum(-1, keepdim=True).clamp_min(1)  # (B, 1), tokens that stay
    last = largest.gather(-1, filled - 1)
    above, equal = probs > last, probs == last
    return above | (equal & (equal.cumsum(-1) <= filled - above.sum(-1, keepdim=True)))


def _waits(seed: int, step: int, like: Tensor) -> Tensor:
    """Exponential noise (B, V), row b of step `step` + b: a hash of (seed, step, token id), alike on every device."""
    keys = [_mixed(seed, step + row) for row in range(len(like))]
    first, second = (
        torch.tensor([key >> shift & 0x7FFFFFFF for key in keys], dtype=torch.int32, device=like.device)[:, None]
        for shift in (0, 31)
    )
    x = torch.arange(like.shape[-1], dtype=torch.int32, device=like.device) + first
    x ^= second
    for shift, mask, factor in ((16, 0xFFFF, 0x21F0AAAD), (15, 0x1FFFF, 0x735A2D97)):  # C. Wellons' hash of 32 bits
        x ^= (x >> shift).bitwise_and_(mask)
        x *= factor  # wraps around
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    # Small ones keep their precision: they win the race.
    uniform = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2**-31)
    return uniform.neg_().log1p_().neg_()


def _mixed(seed: int, step: int) -> int:
    """A key of 64 bits of (seed, step), by splitmix64: neighbouring pairs have nothing in common."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return z ^ (z >> 31)
