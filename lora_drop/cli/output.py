"""Output of the commands: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PART = 20.0  # seconds between two lines of a part that is under way
Row = dict[str, Any]
Column = tuple[str, ...] | Callable[[Row], str]


def print_json(result: Any) -> None:
    """Print one object on stdout; NaN and infinity are errors."""
    print(json.dumps(result, allow_nan=False))


def print_result(args: argparse.Namespace, result: Any, show: Callable[[], None]) -> None:
    """Print a command's result: one JSON object with `--json`, else as `show` prints it."""
    if args.json:
        print_json(result)
    else:
        show()


def note(*texts: str) -> None:
    """Print remarks beside the result on stderr, a line each."""
    for text in texts:
        say(f"note: {text}")


def say(text: str) -> None:
    """Print on stderr what the command is doing, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(text, sys.stderr)


@contextmanager
def progress(noun: str, every: float = 0, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A callback `(done, total=None, words="")`: on a terminal's stderr a bar with the time left, or a count.

    Elsewhere a line, `3 of 9 points, 02:10 left`, or nothing without a total. `done` may have a fraction, for what is
    under way. The pace leaves out what the first call has done.

    Args:
        every: elsewhere, seconds between two lines at least; the last one always comes.
        quiet: print nothing.
    """
    from tqdm import tqdm

    on_terminal, due = sys.stderr.isatty(), 0.0
    began = 0.0, 0.0  # when, and with how much done
    last: tuple[float, int | None] = math.inf, None  # what was shown last
    form = {"bar_format": f"{{n_fmt}} {noun}", "smoothing": 0, "miniters": 0, "leave": False, "dynamic_ncols": True}
    with tqdm(disable=quiet or not on_terminal, **form) as bar:

        def show(done: float, total: int | None = None, words: str = "") -> None:
            nonlocal due, began, last
            count, is_part, now = f"{int(done)} of {total} {noun}", done > int(done), time.monotonic()
            if on_terminal:
                if bar.total != total or done < bar.n:
                    bar.reset(total)
                    bar.initial = bar.n = done
                if total is not None:
                    bar.bar_format = f"{count} |{{bar}}| {{remaining}} left{{postfix}}"
                bar.set_postfix_str(words, refresh=total is not None and not is_part)
                bar.update(done - bar.n)
            elif total and not quiet and (now >= due + PART * is_part or done == total):
                due = now + every
                if done < last[0] or total != last[1]:  # other work
                    began = now, done
                last = done, total
                pace = (now - began[0]) / (done - began[1]) if done > began[1] else 0
                time_left = f"{tqdm.format_interval(pace * (total - done))} left" if pace * (total - done) >= 1 else ""
                say(", ".join(filter(None, (count, words, time_left))))

        yield show


def cell(value: Any, form: str = "", unit: str = "") -> str:
    """A value in a table; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def spread(row: Row, name: str = "speedup") -> str:
    """The interval of a row's speedup or other figure, `0.98-1.07`; a dash where there is none."""
    low, high = row.get(f"{name}_interval") or (row.get(f"{name}_low"), row.get(f"{name}_high"))
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
