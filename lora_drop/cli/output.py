"""What commands write: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def print_json(result: Any) -> None:
    """One object on stdout; a number that JSON has no word for is an error."""
    print(json.dumps(result, allow_nan=False))


def note(text: str) -> None:
    """A remark that is no part of the result."""
    print(f"note: {text}", file=sys.stderr)


def say(text: str) -> None:
    """What the command is at."""
    print(text, file=sys.stderr, flush=True)


def progress(what: str) -> Callable[[int, int], None]:
    """A callback for work of a known length: `3 of 9 points`, a line each."""
    return lambda done, total: say(f"{done} of {total} {what}")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """A callback that counts on a terminal's stderr, in one line that goes away at the end; elsewhere it is silent."""
    shown = False

    def show(count: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            print(f"\r{count} {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def cell(value: float | None, form: str) -> str:
    """A figure in a table; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}"
