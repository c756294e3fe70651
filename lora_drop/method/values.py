"""The kinds of value that a setting can have: what pydantic accepts, how a text is read, what a message says.

A kind knows nothing of a particular setting. `annotation` is its pydantic type; `read` turns what a flag, a form, a
link or a call holds into a value; `write` is the text of a value, as a link and a form have it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Strict
from pydantic_core import PydanticCustomError

from lora_drop.errors import LoraDropError

MAX_LAYER_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What all kinds share.

    Args:
        off: None is allowed, and means that the setting is off; its text is empty.
    """

    off: bool = False
    name: ClassVar[str]  # for the page's scripts
    python: ClassVar[type] = str  # of an argument on the command line and in the API

    @property
    def plain(self) -> Any:
        """The pydantic type without `off`."""
        raise AttributeError

    @property
    def annotation(self) -> Any:
        """The pydantic type."""
        return self.plain | None if self.off else self.plain

    @property
    def says(self) -> str:
        """What a value must be, for a message."""
        raise AttributeError

    def read(self, given: Any) -> Any:
        """A text, or a number of a form, as a value; what it cannot be is left for the check of the value.

        Raises:
            ValueError: the text cannot be read; without a message, or with one that goes on after "must be".
        """
        return self.from_text(given) if isinstance(given, str) else given

    def from_text(self, text: str) -> Any:
        return text

    def write(self, value: Any) -> str:
        """The text of a value."""
        return "" if value is None else str(value)

    @property
    def facts(self) -> dict[str, Any]:
        """What the page's scripts know of the kind."""
        return {"kind": self.name, "off": self.off}

    def out_of_range(self) -> str | None:
        """What is said of a number outside its bounds, where that is not what `says` says."""
        return None


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `low` to `high`, both included; `note` explains the low one."""

    low: int
    high: int
    note: str = ""
    name = "whole"
    python = int

    @property
    def plain(self) -> Any:
        return Annotated[int, Strict(), Field(ge=self.low, le=self.high)]

    @property
    def says(self) -> str:
        return f"a whole number from {self.low:,}{self.note and f' ({self.note})'} to {self.high:,}"

    def read(self, given: Any) -> Any:
        if isinstance(given, float) and given.is_integer():  # a number field's 64.0
            return int(given)
        return super().read(given)

    def from_text(self, text: str) -> int | None:
        return None if self.off and not text.strip() else int(text)

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"low": self.low, "high": min(self.high, 2**53 - 1)}  # what JavaScript counts to


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from `low` to `high`; with `above`, `low` itself is too low."""

    low: float
    high: float = sys.float_info.max
    above: bool = False
    name = "number"
    python = float

    @property
    def plain(self) -> Any:
        low: dict[str, Any] = {"gt": self.low} if self.above else {"ge": self.low}
        return Annotated[float, Strict(), Field(**low, le=self.high, allow_inf_nan=False)]

    @property
    def says(self) -> str:
        if self.high == sys.float_info.max:
            return f"a finite number from {self.low:g} upwards{', or left out (off)' if self.off else ''}"
        return f"a number above {self.low:g}, at most {self.high:g}" if self.above else self._between("from")

    def _between(self, word: str) -> str:
        return f"a number {word} {self.low:g} {'to' if word == 'from' else 'and'} {self.high:g}"

    def out_of_range(self) -> str | None:
        bounded = self.high < sys.float_info.max and not self.above
        return f"must lie between {self.low:g} and {self.high:g}" if bounded else None

    def from_text(self, text: str) -> float | None:
        if self.off and not text.strip():
            return None
        try:
            return float(text)
        except ValueError:
            raise ValueError("a number, or left empty (off)" if self.off else "") from None

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"low": self.low, "high": min(self.high, 1e6), "above": self.above}


@dataclass(frozen=True)
class Choice(Kind):
    """One of some words; `labels` are what the page shows for them."""

    words: tuple[str, ...]
    labels: tuple[str, ...] = ()
    name = "choice"

    @property
    def plain(self) -> Any:
        return Literal[self.words]

    @property
    def says(self) -> str:
        return f"one of {', '.join(self.words)}"

    def from_text(self, text: str) -> str | None:
        return None if self.off and not text else text

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Label and word of each choice."""
        return list(zip(self.labels or self.words, self.words, strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"words": list(self.words)}


@dataclass(frozen=True)
class Text(Kind):
    """Any text that is not empty; `public` are those that a visitor of the page may give."""

    allowed: str
    public: tuple[str, ...] = ()
    name = "choice"

    @property
    def plain(self) -> Any:
        return Annotated[str, Strict(), Field(min_length=1)]

    @property
    def says(self) -> str:
        return self.allowed

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"words": list(self.public)}


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    name = "flag"
    python = bool

    @property
    def plain(self) -> Any:
        return Annotated[bool, Strict()]

    @property
    def says(self) -> str:
        return "true or false"

    def from_text(self, text: str) -> bool:
        return {"true": True, "false": False}[text.lower()]

    def write(self, value: Any) -> str:
        return str(value).lower()


@dataclass(frozen=True)
class Layers(Kind):
    """A range of layers `(lo, hi)`, both included, from 1 upwards; as a text `3-28`."""

    name = "range"

    @property
    def plain(self) -> Any:
        return Annotated[tuple[int, int], BeforeValidator(_range)]

    @property
    def says(self) -> str:
        return "a range low-high such as 3-28"

    def from_text(self, text: str) -> tuple[int, int]:
        low, mark, high = text.partition("-")
        if not (mark and _is_layer(low.strip()) and _is_layer(high.strip())):
            raise ValueError
        return int(low), int(high)

    def write(self, value: Any) -> str:
        return "" if value is None else "-".join(map(str, value))


@dataclass(frozen=True)
class LayerList(Kind):
    """Different layers by number, from 1 upwards, in ascending order; as a text `4,6,8`."""

    name = "list"

    @property
    def plain(self) -> Any:
        return Annotated[tuple[int, ...], BeforeValidator(_list)]

    @property
    def says(self) -> str:
        return "layer numbers with commas such as 4,6,8"

    def from_text(self, text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if not all(map(_is_layer, parts)):
            raise ValueError
        return tuple(map(int, parts))

    def write(self, value: Any) -> str:
        return ",".join(map(str, value or ()))


def _is_layer(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_LAYER_DIGITS


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("layers", "{message}", {"message": message})


def _numbers(values: Any) -> tuple[int, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise _wrong(f"must be a list of layer numbers, got {values!r}")
    values = tuple(values)
    if any(type(value) is not int for value in values):
        raise _wrong(f"must hold whole numbers, got {list(values)!r}")
    return values


def _range(values: Any) -> tuple[int, ...]:
    values = _numbers(values)
    text = "-".join(map(str, values))
    if len(values) != 2 or values[0] > values[1]:
        raise _wrong(f"must be a range low-high such as 3-28, got {text}")
    if values[0] < 1:
        raise _wrong(f"must start at 1 (layer 0 always runs), got {text}")
    return values


def _list(values: Any) -> tuple[int, ...]:
    chosen = tuple(sorted(_numbers(values)))
    if len(set(chosen)) != len(chosen):
        raise _wrong(f"names a layer twice: {','.join(map(str, chosen))}")
    if chosen and chosen[0] < 1:
        raise _wrong(f"may not contain layer {chosen[0]}: layer 0 always runs")
    return chosen


def unreadable(name: str, kind: Kind, given: str, error: ValueError | KeyError) -> LoraDropError:
    """The line for a text that `read` refused."""
    said = str(error) if type(error) is ValueError and error.args and "literal" not in str(error) else ""
    return LoraDropError(f"{name} must be {said or kind.says}; got {given[:80]!r}.")
