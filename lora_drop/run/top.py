"""The likeliest tokens of logits, as a trace has them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lora_drop.decode.logits import likeliest
from lora_drop.models.tokens import piece
from lora_drop.run.trace.records import TOP


def top_of(tokenizer: Any, logits: Tensor) -> list[list[list[Any]]]:
    """The likeliest tokens of each row of logits (rows, V): `[text, probability]`, the likeliest first."""
    rows = likeliest(logits, min(TOP, logits.shape[-1]))
    return [[[piece(tokenizer, token), round(chance, 4)] for token, chance in row] for row in rows]
