"""How a token is drawn from logits.

Sampling draws with noise that is keyed by (seed, step, token id): the same logits at the same step give the same token
in every lane, however often and in whatever order they are drawn. What the full model would have drawn at a step can
so be asked later, which is how `accept` judges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        return logits.argmax(-1, keepdim=True)
    # Of broken logits any token will do: the lane reports them.
    logits = logits.float().nan_to_num()
    # From the largest down, and by no less than MIN_TEMPERATURE: nothing overflows however small the temperature is.
    probs = ((logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, MIN_TEMPERATURE)).softmax(-1)
    if sampling.top_p < 1:
        ordered, index = probs.sort(descending=True, stable=True)
        # A token stays if what is before it does not yet fill the nucleus; the most probable one always does.
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        outside[..., 0] = False
        probs = probs.masked_fill(torch.zeros_like(outside).scatter_(-1, index, outside), 0)
    waits = [_waits(sampling.seed, step + row, probs) for row in range(len(probs))]
    # Of exponential clocks with these rates the first to ring is a draw from them (the Gumbel-max trick).
    return (probs / torch.stack(waits)).argmax(-1, keepdim=True)


def _waits(seed: int, step: int, like: Tensor) -> Tensor:
    """Exponential noise (V,) of a step."""
    generator = torch.Generator(device=like.device).manual_seed(_mixed(seed, step))
    return torch.empty(like.shape[-1], device=like.device).exponential_(generator=generator)


def _mixed(seed: int, step: int) -> int:
    """A generator's seed of (seed, step), by splitmix64: neighbouring pairs have nothing in common."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return (z ^ (z >> 31)) >> 1  # of a range that every generator takes
