"""Output of the commands: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
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
        say(f"note: {text}")


def say(text: str) -> None:
    """Print on stderr what the command is doing, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def progress(what: str, every: float = 0, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A callback `(done, total, words="")` for work of known length: a bar with the time left on a terminal's stderr.

    Elsewhere it prints a line, `3 of 9 points`. What is done already at the first call is no part of the pace.

    Args:
        every: elsewhere, seconds between two lines at least; the last one always comes.
        quiet: print nothing.
    """
    from tqdm import tqdm

    on_terminal, due = sys.stderr.isatty(), 0.0
    # With a delay the first picture waits for the first call, which knows the total.
    form = f"{{n_fmt}} of {{total_fmt}} {what} |{{bar}}| {{remaining}} left{{postfix}}"
    with tqdm(bar_format=form, smoothing=0, delay=1e-9, dynamic_ncols=True, disable=quiet or not on_terminal) as bar:

        def show(done: int, total: int, words: str = "") -> None:
            nonlocal due
            if on_terminal:
                if bar.total is None:
                    bar.reset(total)
                    bar.initial = bar.n = done
                bar.set_postfix_str(words, refresh=False)
                bar.update(done - bar.n)
                bar.refresh()
            elif not quiet and (time.monotonic() >= due or done == total):
                due = time.monotonic() + every
                say(f"{done} of {total} {what}{words and ', '}{words}")

        yield show


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
