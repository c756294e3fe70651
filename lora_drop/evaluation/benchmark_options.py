"""The options of the benchmark command, without torch: the command line's help is quick."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks import TASKS
from lora_drop.options import parse_path


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked to do, beside model and schedule.

    Args:
        names: of `TASKS`; None takes those that the data folder has.
        limit: records a task; None takes all.
        run_code: run generated programs (in a sandbox); without it code tasks have no score.
        max_new_tokens: of a generated answer.
        context_tokens: the most tokens of a prompt, a longer one loses its middle; None is what the model takes.

    Raises:
        LoraDropError: a number below what it may be.
    """

    data_dir: Path
    out: Path
    names: tuple[str, ...] | None = None
    limit: int | None = None
    run_code: bool = False
    max_new_tokens: int = 256
    context_tokens: int | None = None

    def __post_init__(self):
        for name, least in (("limit", 1), ("max_new_tokens", 1), ("context_tokens", 16)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LoraDropError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")


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
