"""`replay`: read a recorded run, show its figures, export it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.run_report import show_run
from lora_drop.errors import LoraDropError
from lora_drop.paths import write_files
from lora_drop.run.trace.trace import read_trace


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "replay", run, "read a recorded run and show its figures")
    parser.add_path("trace", "TRACE.jsonl")
    parser.add_path("--html", "OUT.html", "the run as a page that opens offline")
    parser.add_path("--chrome", "OUT.json", "the run for Perfetto and chrome://tracing")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    trace = read_trace(args.trace)
    if args.html:
        from lora_drop.run.exports.html import replay_html

        _write_export(args.trace, args.html, replay_html(trace))
    if args.chrome:
        from lora_drop.run.exports.chrome import chrome_trace

        _write_export(args.trace, args.chrome, json.dumps(chrome_trace(trace), allow_nan=False))
    show_run(trace, args.json)


def _write_export(trace: Path, path: Path, text: str) -> None:
    if path.exists() and path.samefile(trace):
        raise LoraDropError(f"{path} is the trace itself: name another file.")
    if not path.parent.is_dir():
        raise LoraDropError(f"cannot write {path.name}: no such folder {path.parent}. Make it first.")
    try:
        write_files({path: text})
    except OSError as error:
        raise LoraDropError(f"cannot write {path}: {error.strerror or error}. The old file is unchanged.") from None
