"""Output of the commands: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Row = dict[str, Any]
Column = tuple[str, ...] | Callable[[Row], str]


def print_json(result: Any) -> None:
    """Print one object on stdout; NaN and infinity are errors."""
    print(json.dumps(result, allow_nan=False))


def note(*texts: str) -> None:
    """Print remarks beside the result on stderr, a line each."""
    for text in texts:
        print(f"note: {text}", file=sys.stderr)


def say(text: str) -> None:
    """Print on stderr what the command is doing."""
    print(text, file=sys.stderr, flush=True)


def progress(what: str) -> Callable[[int, int], None]:
    """A callback for work of known length that prints a line each time: `3 of 9 points`."""
    return lambda done, total: say(f"{done} of {total} {what}")


@contextmanager
def counting(what: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A callback that counts in one line on a terminal's stderr; the line goes at the end. Elsewhere it is silent."""
    from tqdm import tqdm

    with tqdm(bar_format=f"{{n}} {what}", leave=False, disable=quiet or None) as bar:

        def show(count: int) -> None:
            bar.update(count - bar.n)

        yield show


def cell(value: Any, form: str = "", unit: str = "") -> str:
    """A value in a table; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def spread(row: Row, name: str = "speedup") -> str:
    """The interval of a row's speedup or other figure, `0.98-1.07`; a dash where there is none."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "-" if low is None or high is None else f"{low:.2f}-{high:.2f}"


def print_table(rows: Sequence[Row], columns: Mapping[str, Column]) -> None:
    """Print rows as a table on stdout; columns with figures are aligned to the right.

    Args:
        columns: by heading, what `cell` is called with (the name of a value, its format, its unit), or a function of
            the row.
    """
    table = []
    for heading, column in columns.items():
        cells = [column(row) if callable(column) else cell(row.get(column[0]), *column[1:]) for row in rows]
        width = max(map(len, (heading, *cells)))
        has_figures = any(text[:1].isdigit() for text in cells)
        table.append([text.rjust(width) if has_figures else text.ljust(width) for text in (heading, *cells)])
    for line in zip(*table, strict=True):
        print("  ".join(line).rstrip())
