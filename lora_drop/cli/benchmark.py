"""The options of `benchmark`."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import parse_path
from lora_drop.evaluation.tasks.options import Options
from lora_drop.evaluation.tasks.tasks import TASKS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--data-dir", type=parse_path, required=True, metavar="DIR", help="holds gsm8k/, bbh/ and so on"
    )
    parser.add_argument("--tasks", metavar="NAME,NAME", help=f"of {', '.join(TASKS)} (default: all that DIR has)")
    parser.add_argument("--limit", type=int, metavar="N", help="N records a task, from its files in turn")
    parser.add_argument(
        "--out", type=parse_path, required=True, metavar="DIR", help="gets the table; goes on where it ended"
    )
    parser.add_argument("--run-code", action="store_true", help="run the programs that the model writes (sandboxed)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (default 256)")
    parser.add_argument("--context-tokens", type=int, metavar="N", help="cut the middle out of prompts longer than N")


def options_from(args: argparse.Namespace) -> Options:
    """What the command's options ask for.

    Raises:
        LoraDropError: see `Options`.
    """
    names = None if args.tasks is None else tuple(name.strip() for name in args.tasks.split(","))
    return Options(
        *(args.data_dir, args.out, names, args.limit),
        *(args.run_code, args.max_new_tokens, args.context_tokens),
    )
