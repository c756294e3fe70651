"""The one exception that a user can cause, and lines for what other libraries raise."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_CHARACTERS = 600  # of a message
# The package itself, as in pyproject.toml: this program is not on the package index.
TESTED_GRADIO = "6.31"
GET_PAGE = "pip install 'gradio>=6.31,<6.32'"


class LoraDropError(ValueError):
    """A mistake in the input (a setting, a file, a model name): one line that says what is wrong, then what to do.

    The command line prints the message on stderr and exits with code 2; the page shows it beside the controls.
    """

    def __init__(self, message: str):
        # A message repeats input: of any length, with characters that move a terminal's cursor or are not UTF-8.
        line = " ".join(message.split())
        if len(line) > MAX_CHARACTERS:
            line = f"{line[: MAX_CHARACTERS // 2]} [...] {line[-MAX_CHARACTERS // 2 :]}"
        super().__init__("".join(char if char.isprintable() else "\ufffd" for char in line))


# Flags of options that were removed, and what to do without them.
REMOVED = {
    "--parts": "turn the corrections off by --no-corrections",
    "--refresh-norm": "refresh early by --refresh-entropy",
    "--mlp-width": "leave it out: only linear corrections are trained",
    "--kept-rank": "leave it out: only linear corrections are trained",
}


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """` Did you mean NAME?` for the name that is spelt most like a word; empty if none is near."""
    return "".join(f" Did you mean {name}?" for name in get_close_matches(word[:100], names, 1))


class LineParser(argparse.ArgumentParser):
    """A parser of a command line whose mistakes are one line: argparse prints the whole usage before each."""

    _flags: tuple[str, ...] = ()  # of the words that it is parsing

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse words, and refuse those that no option takes, unless `rest` of the defaults is to have them."""
        words = sys.argv[1:] if args is None else args
        self._flags = tuple(word.partition("=")[0] for word in words if re.match(r"--\w[^\s]*$", word))
        result, rest = super().parse_known_args(words, namespace)
        if rest and not hasattr(result, "rest"):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return result, rest

    def error(self, message: str) -> NoReturn:
        """Raise LoraDropError. A misspelt flag is named also where argparse first misses the one that was meant."""
        names = [name for action in self._actions for name in (*action.option_strings, *(action.choices or ()))]
        choice = re.findall(r"invalid choice: '([^']+)'", message)
        words = choice or [flag for flag in self._flags if flag not in names]
        if words and words[0] in REMOVED:
            raise LoraDropError(f"{words[0]} was removed: {REMOVED[words[0]]} (see {self.prog} --help)")
        hint = did_you_mean(words[0], names) if words else ""
        if hint and not choice:
            message = f"unrecognized arguments: {words[0]}"
        raise LoraDropError(f"{message}{hint and '.'}{hint} (see {self.prog} --help)")


@contextmanager
def one_line(doing: str, advice: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a LoraDropError of one line.

    Args:
        doing: what failed, such as `cannot read FILE`.
        advice: a further sentence.
    """
    try:
        yield
    except OSError as error:
        raise LoraDropError(f"{doing}: {error.strerror or error}.{advice and ' '}{advice}") from None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what goes wrong in the block, which reads a file of text, into a LoraDropError of one line."""
    with one_line(f"cannot read {name}"):
        try:
            yield
        except UnicodeDecodeError:
            raise LoraDropError(f"{name} is not UTF-8 text.") from None


def first_mistake(error: ValidationError) -> str:
    """The first mistake in a pydantic error, as `field: reason`."""
    first = error.errors(include_url=False, include_input=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), reason)))


def no_package(error: ModuleNotFoundError) -> str:
    """What to do about a package that this Python lacks: on most machines there is more than one Python."""
    return (
        f"{sys.executable} has no package {error.name}: take the Python that this program was installed for (source "
        ".venv/bin/activate), or install it for this one."
    )


def first_line(error: object, most: int = 200) -> str:
    """The first line of another library's error or warning, cut; its type's name if it has no words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has its own exception for CUDA's allocator alone, and only words elsewhere."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )
