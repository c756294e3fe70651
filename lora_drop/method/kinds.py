"""Kinds of value that a setting can have: how pydantic checks one, how a text is read, what an error says.

A kind knows nothing of a particular setting. `annotation` is its pydantic type, `read` turns a flag, a form, a link
or an argument of a call into a value, and `write` gives the text of a value for a link or a form.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, Strict
from pydantic_core import PydanticCustomError

MAX_LAYER_DIGITS = 6
JAVASCRIPT_MAX = 2**53 - 1  # the largest whole number that JavaScript counts exactly


def _is_layer(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_LAYER_DIGITS


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("layers", "{message}", {"message": message})


def _check_numbers(values: Any) -> tuple[int, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise _wrong(f"must be a list of layer numbers, got {values!r}")
    numbers = tuple(values)
    if any(type(number) is not int for number in numbers):
        raise _wrong(f"must hold whole numbers, got {list(numbers)!r}")
    return numbers


def _check_range(values: Any) -> tuple[int, ...]:
    ends = _check_numbers(values)
    text = "-".join(map(str, ends))
    if len(ends) != 2 or ends[0] > ends[1]:
        raise _wrong(f"must be a range low-high such as 3-28, got {text}")
    if ends[0] < 1:
        raise _wrong(f"must start at 1 (layer 0 always runs), got {text}")
    return ends


def _check_list(values: Any) -> tuple[int, ...]:
    layers = tuple(sorted(_check_numbers(values)))
    if len(set(layers)) != len(layers):
        raise _wrong(f"names a layer twice: {','.join(map(str, layers))}")
    if layers and layers[0] < 1:
        raise _wrong(f"may not contain layer {layers[0]}: layer 0 always runs")
    return layers


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """Base of all kinds.

    Args:
        off: None is allowed and turns the setting off; its text is empty.
    """

    off: bool = False
    name: ClassVar[str]  # in the page's scripts
    python: ClassVar[type] = str  # of an argument on the command line and in the API

    @property
    @abstractmethod
    def plain(self) -> Any:
        """The pydantic type without `off`."""

    @property
    def annotation(self) -> Any:
        """The pydantic type."""
        return self.plain | None if self.off else self.plain

    @property
    @abstractmethod
    def must_be(self) -> str:
        """What a value must be, for an error and the docs."""

    @property
    def text_must_be(self) -> str:
        """What a text must be, for an error."""
        return self.must_be

    def read(self, value: Any) -> Any:
        """Turn a text, or a number of a form, into a value. The check of the value comes later.

        Raises:
            ValueError, KeyError: the text cannot be read.
        """
        return self.from_text(value) if isinstance(value, str) else value

    def from_text(self, text: str) -> Any:
        text = text if self.python is str else text.strip()
        return None if self.off and not text else self.python(text)

    def write(self, value: Any) -> str:
        """The text of a value."""
        return "" if value is None else str(value)

    @property
    def facts(self) -> dict[str, Any]:
        """The kind as the page's scripts get it."""
        return {"kind": self.name, "off": self.off}

    def out_of_range(self) -> str | None:
        """The error for a number outside its bounds; None: the one of `must_be`."""
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
    def must_be(self) -> str:
        return f"a whole number from {self.low:,}{self.note and f' ({self.note})'} to {self.high:,}"

    def read(self, value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():  # a number field's 64.0
            return int(value)
        return super().read(value)

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"low": self.low, "high": min(self.high, JAVASCRIPT_MAX)}


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
    def must_be(self) -> str:
        if self.high == sys.float_info.max:
            return f"a finite number from {self.low:g} upwards{', or left out (off)' if self.off else ''}"
        if self.above:
            return f"a number above {self.low:g}, at most {self.high:g}"
        return f"a number from {self.low:g} to {self.high:g}"

    @property
    def text_must_be(self) -> str:
        return "a number, or left empty (off)" if self.off else self.must_be

    def out_of_range(self) -> str | None:
        bounded = self.high < sys.float_info.max and not self.above
        return f"must lie between {self.low:g} and {self.high:g}" if bounded else None

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"low": self.low, "high": min(self.high, 1e6), "above": self.above}


@dataclass(frozen=True)
class Choice(Kind):
    """One of some words; `labels` are the page's names for them."""

    words: tuple[str, ...]
    labels: tuple[str, ...] = ()
    name = "choice"

    @property
    def plain(self) -> Any:
        return Literal[self.words]

    @property
    def must_be(self) -> str:
        return f"one of {', '.join(self.words)}"

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """Label and word of each choice."""
        return list(zip(self.labels or self.words, self.words, strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"words": list(self.words)}


@dataclass(frozen=True)
class Text(Kind):
    """Any text but the empty one, described by `allowed`.

    With `public` a visitor of the page may only choose one of these, which `labels` are the page's names for, or write
    a text that fits the pattern `written`.
    """

    allowed: str
    public: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    written: str = ""
    name = "text"

    plain = Annotated[str, Strict(), Field(min_length=1)]

    @property
    def must_be(self) -> str:
        return self.allowed

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """Label and text of each that a visitor may choose."""
        return list(zip(self.labels or self.public, self.public, strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | ({"kind": Choice.name, "words": list(self.public)} if self.public else {})


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    name = "flag"
    python = bool
    plain = Annotated[bool, Strict()]
    must_be = "true or false"

    def from_text(self, text: str) -> bool:
        return {"true": True, "false": False}[text.lower()]

    def write(self, value: Any) -> str:
        return str(value).lower()


@dataclass(frozen=True)
class Layers(Kind):
    """A range of layers `(lo, hi)`, both included, from 1 upwards; as a text `3-28`."""

    name = "range"
    plain = Annotated[tuple[int, int], BeforeValidator(_check_range)]
    must_be = "a range low-high such as 3-28"

    def from_text(self, text: str) -> tuple[int, int]:
        low, dash, high = text.partition("-")
        if not (dash and _is_layer(low.strip()) and _is_layer(high.strip())):
            raise ValueError
        return int(low), int(high)

    def write(self, value: Any) -> str:
        return "" if value is None else "-".join(map(str, value))


@dataclass(frozen=True)
class LayerList(Kind):
    """Different layers by number, from 1 upwards, in ascending order; as a text `4,6,8`."""

    name = "list"
    plain = Annotated[tuple[int, ...], BeforeValidator(_check_list)]
    must_be = "layer numbers with commas such as 4,6,8"

    def from_text(self, text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if not all(map(_is_layer, parts)):
            raise ValueError
        return tuple(map(int, parts))

    def write(self, value: Any) -> str:
        return ",".join(map(str, value or ()))


_KINDS: dict[Any, Any] = {int: Whole, float: Number, bool: Flag, str: Text}
_KINDS |= {tuple[int, int]: Layers, tuple[int, ...]: LayerList}


def kind_of(annotation: Any, between: tuple[float, float] | None = None, **limits: Any) -> Kind:
    """The kind of a field's annotation; `| None` makes it one that can be off.

    Args:
        between: the lowest and the highest number.
        limits: other arguments of the kind.
    """
    if between:
        limits["low"], limits["high"] = between
    options = get_args(annotation)
    off = NoneType in options
    plain = next(option for option in options if option is not NoneType) if off else annotation
    if get_origin(plain) is Literal:
        return Choice(get_args(plain), off=off, **limits)
    kind: Kind = _KINDS[plain](off=off, **limits)
    return kind
