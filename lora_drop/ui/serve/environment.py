"""Read the server's environment: whether it is a Space, and the values that the operator sets."""

from __future__ import annotations

import os
from typing import Annotated, Any, TypeVar

from pydantic import AllowInfNan, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from lora_drop.errors import LoraDropError

N = TypeVar("N", int, float)


def in_space() -> bool:
    """True in a HuggingFace Space, whose owner pays for what its visitors load."""
    return "SPACE_ID" in os.environ


def read_variable(variable: str, kind: Any, default: Any, must_be: str) -> Any:
    """Value of an environment variable as a type that pydantic knows; the default if it is not set.

    Args:
        must_be: the allowed values in words, for the error.

    Raises:
        LoraDropError: the variable has another value.
    """
    text = os.environ.get(variable, "").strip()
    try:
        return TypeAdapter(kind).validate_python(text) if text else default
    except ValidationError:
        raise LoraDropError(f"the variable {variable} must be {must_be}, not {text[:40]!r}.") from None


def positive_number(variable: str, default: N) -> N:
    """Value of an environment variable as a positive number of the default's type.

    Raises:
        LoraDropError: the variable has another value.
    """
    kind = PositiveInt if isinstance(default, int) else Annotated[PositiveFloat, AllowInfNan(False)]
    number: N = read_variable(variable, kind, default, "a number above 0")
    return number
