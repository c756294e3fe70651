"""How a token is drawn from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-6  # below it sampling is greedy to the last bit of float32


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits: greedy at temperature 0, else softmax over the top-p nucleus."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token (B, 1) from logits (B, V)."""
    if sampling.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # multinomial refuses NaN, and on CUDA faults: of broken logits any token will do, the lane reports them.
    logits = logits.float().nan_to_num()
    # From the largest down, and by no less than MIN_TEMPERATURE: nothing overflows however small the temperature is.
    probs = ((logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, MIN_TEMPERATURE)).softmax(-1)
    if sampling.top_p < 1:
        ordered, index = probs.sort(descending=True, stable=True)
        # A token stays if what is before it does not yet fill the nucleus; the most probable one always does.
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        outside[..., 0] = False
        ordered[outside] = 0
        choice = torch.multinomial(ordered, 1, generator=generator)
        return index.gather(-1, choice)
    return torch.multinomial(probs, 1, generator=generator)
