"""`fetch`: get a model ready."""

from __future__ import annotations

import argparse
import sys

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import print_result
from lora_drop.errors import LoraDropError
from lora_drop.models.named import NAMED, OnlyAnonymous, fetch_shown


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "fetch", run, "get the bundled model or a larger one ready, and print where it is")
    parser.add_argument("model", nargs="?", default="bundled", help=f"bundled (default), {', '.join(NAMED)}")
    parser.add_argument("--verify", action="store_true", help="hash every file, and repair what is damaged")
    parser.add_argument(
        "--anonymous", action="store_true", help="without the Hub take an anonymous upload whose SHA-256 is the Hub's"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.model == "bundled":
        from lora_drop.models.bundled import ensure

        folder = str(ensure(verify=args.verify))
        return print_result(args, {"folder": folder}, lambda: print(folder))
    if args.model not in NAMED:
        raise LoraDropError(f"no model {args.model!r} to fetch: bundled, {', '.join(NAMED)}.")
    model = NAMED[args.model]
    try:
        file = fetch_shown(model, args.anonymous, args.verify)
    except OnlyAnonymous as error:
        if not sys.stdin.isatty() or args.json:
            raise
        print(error, file=sys.stderr)
        if input("Take it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise LoraDropError(f"{model.name} was not fetched.") from None
        file = fetch_shown(model, anonymous=True)
    print_result(args, {"file": str(file), "licence": model.licence}, lambda: print(file))
