"""`sweep-figures`: draw a sweep as self-contained HTML."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command, parse_path
from lora_drop.cli.output import print_json


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "sweep-figures", run, "a sweep as self-contained HTML")
    parser.add_argument("folder", type=parse_path, metavar="DIR", help="where sweep wrote sweep.json")
    parser.add_argument(
        "--out", type=parse_path, required=True, metavar="DIR", help="gets heatmaps.html and pareto.html"
    )
    parser.add_argument("--theme", default="light", help="light (default) or dark")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from lora_drop.run.exports.figures.pages import write_figures
    from lora_drop.run.results.files import SWEEP

    paths = [str(path) for path in write_figures(SWEEP.read(args.folder / SWEEP.name), args.out, args.theme)]
    if args.json:
        print_json({"files": paths})
    else:
        print("\n".join(paths))
    return 0
