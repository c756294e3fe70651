"""`python -m lora_drop COMMAND`: run a command, and turn mistakes into one line and an exit code.

Results go to stdout, everything else to stderr. Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from lora_drop.cli import doctor
from lora_drop.cli.arguments import Parser
from lora_drop.errors import LoraDropError, is_out_of_memory, no_package
from lora_drop.runtime import VERSION, check_versions, one_line_warnings

BAD_INPUT = 2
INTERRUPTED = 130
COMMANDS = (  # the files of this folder that have one or two each, in the order of `--help`
    *("run", "page", "evaluate", "sweep", "presets", "compare", "reproduce", "calibrate", "bench", "benchmark"),
    *("drop_order", "train", "adapters", "replay", "diff", "fetch", "space", "doctor"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        _open_streams()
        # The terminal's encoding may lack characters of a text.
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        one_line_warnings()
        parser = _parser()
        try:
            args, rest = parser.parse_known_args(argv)
        finally:
            sys.stdout.flush()  # --help ends here; a closed pipe must be noticed now
        args.rest = rest  # `page` parses it
        if args.command is not doctor.run:  # `doctor` reports wrong versions itself
            check_versions()
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _end("interrupted.", INTERRUPTED)
    except OSError as error:
        # Commands report errors with files themselves, so stdout failed. Python flushes it at exit: let that write go
        # nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            return 1
        return _end(f"cannot write the result: {error.strerror or error}.", 1)
    except Exception as error:
        if isinstance(error, LoraDropError):
            return _end(str(error))
        if isinstance(error, ModuleNotFoundError):
            return _end(no_package(error))
        if is_out_of_memory(error):
            return _end("out of memory: take shorter texts, smaller batches, a smaller model or another device.")
        raise


def _end(line: str, code: int = BAD_INPUT) -> int:
    print(f"lora-drop: {line}", file=sys.stderr)
    return code


def _open_streams() -> None:
    """Point a stream that the caller closed (`>&-`) at nothing; else the next opened file would take its place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            if (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115  open to the end


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lora-drop", description="LoRA-Drop decoding: run it, measure it.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lora-drop {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"lora_drop.cli.{name}").add(commands)
    return parser
