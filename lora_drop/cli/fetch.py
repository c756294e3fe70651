"""`fetch`: get the bundled model ready."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import print_result


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "fetch", run, "get the bundled model ready, and print its folder")
    parser.add_argument("--verify", action="store_true", help="hash every file, and repair what is damaged")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from lora_drop.models.bundled import ensure

    folder = str(ensure(verify=args.verify))
    print_result(args, {"folder": folder}, lambda: print(folder))
