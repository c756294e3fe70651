"""What lets a lane ask the device for its next pass before it has read what the last one gave."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.clock import Clock
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.step import DecoderOutput, DecodeState


class Fetched:
    """Tensors on their way from a device. `read` waits for them, and for nothing that was asked for after them."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._here, self._there = list(tensors), None
        device = tensors[0].device
        if device.type == "cuda":
            self._here = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]
            for place, one in zip(self._here, tensors, strict=True):
                place.copy_(one, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(device))

    def read(self) -> list[list[Any]]:
        """The numbers of each."""
        if self._there is not None:
            self._there.synchronize()
        return [one.flatten().tolist() for one in self._here]


@dataclass(frozen=True)
class Launched:
    """A pass that was asked for.

    Args:
        found: what it gives; its logits may have several rows.
        choices: a token (rows, 1) for each.
        numbers: these tokens, and the entropy if the decoder gives it as a tensor.
        clock: started before it, and marked behind it.
        read_ms: for prefill, what reading the prompt took.
        about: what the step's record has of the state after it.
    """

    found: DecoderOutput
    choices: Tensor
    numbers: Fetched
    clock: Clock
    read_ms: float
    about: dict[str, Any]


@dataclass(frozen=True)
class Before:
    """What a step that reads one token changes in a state, but for the contents of its buffers: beyond the caches'
    lengths these mean nothing, and of the anchors no step is left that would read them."""

    position: int
    lengths: list[int]
    refresher: Refresher
    pending: list[Tensor]
    kv_bytes: int

    @classmethod
    def of(cls, state: DecodeState) -> Before:
        """As it is now."""
        return cls(
            state.position, list(state.kv.lengths), copy.copy(state.refresher), list(state.pending), state.kv.nbytes
        )

    def restore(self, state: DecodeState) -> None:
        """Take back the step: it was one too many, and the last."""
        state.position, state.kv.lengths[:] = self.position, self.lengths
        state.refresher, state.pending = self.refresher, self.pending
