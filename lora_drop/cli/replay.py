"""`replay` and `view`: read a recorded run, show its figures, export it, open it in a browser."""

from __future__ import annotations

import argparse
import json
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import note, print_result
from lora_drop.cli.run_report import show_run
from lora_drop.errors import LoraDropError, one_line
from lora_drop.paths import new_temporary_file, write_files
from lora_drop.run.trace.trace import read_trace


def add(commands: Commands) -> None:
    """Add the options of both commands."""
    parser = add_command(commands, "replay", run, "read a recorded run and show its figures")
    parser.add_path("trace", "TRACE.jsonl")
    parser.add_path("--html", "OUT.html", "the run as a page that opens offline")
    parser.add_path("--chrome", "OUT.json", "the run for Perfetto and chrome://tracing")
    parser.add_path("--svg", "OUT.svg", "the run's figures as a drawing")
    parser.add_path("--png", "OUT.png", "the run's figures as a picture; needs no browser")
    parser.add_argument("--figure", metavar="NAME", help="one of the figures (default run: all of them)")
    parser.add_argument("--theme", help="colours of the figures: light (default), dark")
    view = add_command(commands, "view", run_view, "open the replay of a recorded run in a browser")
    view.add_path("trace", "TRACE.jsonl")
    view.add_path("--html", "OUT.html", "where to keep the page (default a temporary file)")


def run(args: argparse.Namespace) -> None:
    """Run the command `replay`."""
    trace = read_trace(args.trace)
    if args.html:
        from lora_drop.run.exports.html import replay_html

        write_export([args.trace], args.html, replay_html(trace))
    if args.chrome:
        from lora_drop.run.exports.chrome import chrome_trace

        write_export([args.trace], args.chrome, json.dumps(chrome_trace(trace), allow_nan=False))
    if args.svg or args.png:
        from lora_drop.run.exports.figures.run import run_svg
        from lora_drop.run.exports.figures.svg import png_of

        svg = run_svg(trace, args.theme or "light", args.figure or "run")
        if args.svg:
            write_export([args.trace], args.svg, svg)
        if args.png:
            write_export([args.trace], args.png, png_of(svg))
    elif args.figure or args.theme:
        raise LoraDropError("--figure and --theme are of a drawing: name its file, --svg OUT.svg or --png OUT.png.")
    show_run(trace, args.json)


def run_view(args: argparse.Namespace) -> None:
    """Run the command `view`."""
    from lora_drop.run.exports.html import replay_html

    page = replay_html(read_trace(args.trace))
    path: Path = args.html or new_temporary_file("lora-drop-", ".html")
    write_export([args.trace], path, page)
    opened = webbrowser.open(path.resolve().as_uri())
    if not opened:
        note("no browser could be started here: open the file yourself.")
    print_result(args, {"file": str(path), "opened": opened}, lambda: print(path))


def write_export(traces: Sequence[Path], path: Path, content: str | bytes) -> None:
    """Write a file that is made from traces. Raises LoraDropError: it is one of them, or cannot be written."""
    if path.exists() and any(path.samefile(trace) for trace in traces):
        raise LoraDropError(f"{path} is the trace itself: name another file.")
    if not path.parent.is_dir():
        raise LoraDropError(f"cannot write {path.name}: no such folder {path.parent}. Make it first.")
    with one_line(f"cannot write {path}", "The old file is unchanged."):
        write_files({path: content})
