"""A prompt that was read once: lanes, audits and later runs start from copies of it.

Shapes: B batch, P prompt tokens, L layers, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lora_drop.decode.cache import KVCache


class Stopped(Exception):
    """Reading a prompt was stopped between two of its parts."""


@dataclass(frozen=True)
class Prefilled:
    """What the full model has of a prompt: enough for a lane of any schedule. Nobody writes into it.

    Args:
        tokens: (B, P).
        kv: of the whole prompt.
        states: of its last token what each layer takes, and what the last one gives, (L + 1, B, D).
        attended: of the same token the stream after each layer's attention, (L, B, D).
        logits: of the next token, (B, V).
        ms: what reading it took.
    """

    tokens: Tensor
    kv: KVCache
    states: Tensor
    attended: Tensor
    logits: Tensor
    ms: float

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it takes."""
        tensors = (self.tokens, self.states, self.attended, self.logits)
        return self.kv.allocated_bytes + sum(tensor.nbytes for tensor in tensors)
