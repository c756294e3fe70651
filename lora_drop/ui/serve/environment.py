"""Read what the server's environment says: whether it is a Space, and numbers that the operator sets."""

from __future__ import annotations

import math
import os
from typing import TypeVar

from lora_drop.errors import LoraDropError

N = TypeVar("N", int, float)


def in_space() -> bool:
    """True in a HuggingFace Space, whose owner pays for what its visitors load."""
    return "SPACE_ID" in os.environ


def positive_number(variable: str, default: N) -> N:
    """A positive number of the default's type, from an environment variable.

    Raises:
        LoraDropError: the variable holds anything else.
    """
    text = os.environ.get(variable, "").strip()
    try:
        value = type(default)(text) if text else default
        if not math.isfinite(value) or (text and value <= 0):
            raise ValueError
    except ValueError:
        raise LoraDropError(f"the variable {variable} must be a number above 0, not {text[:40]!r}.") from None
    return value
