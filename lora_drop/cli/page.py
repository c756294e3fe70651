"""`page`: start the page. What follows the command's name is the page's own (`lora_drop page --help`)."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """The command; `main` leaves what follows its name in `args.rest`."""
    add_command(commands, "page", run, "start the page", add_help=False).set_defaults(rest=[])


def run(args: argparse.Namespace) -> int:
    """The command; returns when the page is stopped."""
    from lora_drop import ui

    return ui.main(args.rest, prog="lora_drop page")
