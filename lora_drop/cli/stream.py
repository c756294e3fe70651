"""A run on a terminal, as it is written: the lanes side by side, which layers ran at each step, and the speed.

Drafts that the full model may still reject are not shown. Pictures are drawn between steps, while no clock runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from lora_drop.cli.run_report import plain, show_head
from lora_drop.method.cost import human_bytes
from lora_drop.method.schedule import DRAFTS
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.report.report import LaneReport, Report
from lora_drop.run.report.words import counted
from lora_drop.run.trace.records import BASELINE, LORA_DROP, LaneHeader

LEAST = 24  # columns of a terminal
COLUMN = 18  # columns of a lane, at least; where the terminal has fewer the lanes are one above the other
EVERY = 0.1  # seconds between two pictures, at least; drawing takes at most a tenth of the time
BARS, ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"  # the share of layers that a step ran
# The light theme's colours of these can be read on black too.
STYLES = {BASELINE: COLORS["light"]["baseline"], LORA_DROP: COLORS["light"]["lora-drop"]}
SKIPPED = COLORS["light"]["dropped"]


class Stream:
    """Draws a run while the block lasts; at its end, also an interrupt's, the whole answers stay.

    Args:
        report: of the run; the block calls the function that it gets after each record.
        console: by default stdout's terminal.

    Attributes:
        fits: whether the terminal is wide enough.
    """

    def __init__(self, report: Report, console: Console | None = None):
        self._report = report
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
        self._due = 0.0
        self.fits = self._console.width >= LEAST

    def __enter__(self) -> Callable[[int], None]:
        show_head(self._report.trace.header)
        print()
        self._live.start()
        return self._draw

    def __exit__(self, *error: object) -> None:
        self._live.update(self._picture(whole=True))
        self._live.stop()

    def _draw(self, steps: int) -> None:
        if (now := time.monotonic()) >= self._due:
            self._live.update(self._picture(), refresh=True)
            self._due = now + max(EVERY, 10 * (time.monotonic() - now))

    def _picture(self, whole: bool = False) -> RenderableType:
        """The lanes; unless `whole`, each with as many of its last lines as the terminal's height has room for."""
        lanes, width = self._report.trace.header.lanes, self._console.width
        across = len(lanes) if width // len(lanes) - 2 >= COLUMN else 1
        column = width // across - 2  # two blanks follow each, the last too: a terminal writes ^C there
        rows = max(2, self._console.height * across // len(lanes) - 7)  # label, bars, and figures of up to four lines
        columns = (Column(width=column) for _ in range(across))
        grid = Table.grid(*columns, padding=(0, 2, 0, 0), pad_edge=False)
        cells = [self._lane(lane, column, None if whole else rows) for lane in lanes]
        for at in range(0, len(cells), across):
            for row in zip(*cells[at : at + across], strict=True):
                grid.add_row(*row)
        return grid

    def _lane(self, lane: LaneHeader, width: int, rows: int | None) -> tuple[RenderableType, ...]:
        """A lane's label, text, bars and figures."""
        report, style = self._report.lanes[lane["id"]], STYLES.get(lane["id"], "")
        steps = report.steps[: report.verified]
        lines = Text(plain("".join(step.text for step in steps)).strip("\n")).wrap(self._console, width)
        label = Text(plain(lane["label"]), f"bold {style}", no_wrap=True, overflow="ellipsis")
        return (
            label,
            Group(*lines[-rows if rows else 0 :]),
            self._strip(report, width, style),
            Text(figures_of(report), "dim"),
        )

    def _strip(self, report: LaneReport, width: int, style: str) -> Text:
        """A bar for each of the last steps: its height is the share of layers that ran."""
        bars = BARS if self._console.encoding.startswith("utf") else ASCII_BARS
        strip = Text()
        for step in report.steps[: report.verified][-width:]:
            bar = bars[round(8 * sum(step.active) / len(step.active))]
            strip.append(bar, SKIPPED if step.kind in DRAFTS else style)
        return strip


def figures_of(report: LaneReport) -> str:
    """A lane's figures so far, in a line."""
    rate, steps = report.tokens_per_second, report.steps[: report.verified]
    words = [counted(len(steps), "token"), f"{rate:.1f} tokens/s" if rate else "no decode step"]
    words += [f"KV {human_bytes(steps[-1].kv_bytes)}"] if steps else []
    words += [f"{counted(len(report.rejected), 'draft')} rejected"] if report.rejected else []
    return ", ".join(words)
