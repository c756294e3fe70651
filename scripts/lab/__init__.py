"""Tools that choose settings and make assets: developers run them in a checkout, and no wheel has them.

`recommend` searches for the fastest setting within a loss (`search` measures, `frontier` draws). `samples` writes what
the presets answer, for assets/presets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from lora_drop.cli.arguments import Parser
from lora_drop.errors import LoraDropError


def exit_code(parser: Parser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None) -> int:
    """Run a script: 0, or 2 for a mistake, which is one line on stderr."""
    try:
        run(parser.parse_args(argv))
    except LoraDropError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0
