"""`page`: start the page. A separate parser reads its options (`lora-drop page --help`)."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command; `main` leaves its options in `args.rest`."""
    add_command(commands, "page", run, "start the page", json=False, add_help=False).set_defaults(rest=[])


def run(args: argparse.Namespace) -> int:
    """Run the page until it is stopped."""
    from lora_drop import ui

    return ui.main(args.rest, prog="lora-drop page")
