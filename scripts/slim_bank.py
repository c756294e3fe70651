"""Save an adapter folder without the parts that no preset runs: `python -m scripts.slim_bank FOLDER OUT`.

The tensors that stay are the same, bit for bit, so a run with these parts writes the same text. In the bank of
`balanced` the parts `mlp` and `kept` are 7.7 of 17 MB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.hub import WEIGHTS_NAME
from lora_drop.errors import LoraDropError


def slim(folder: Path, out: Path, parts: frozenset[str]) -> tuple[int, int]:
    """Save a bank with some of its parts, and its card; returns the bytes of the weights before and after.

    Raises:
        LoraDropError: the bank is broken or lacks a part, or `out` is `folder` or cannot be written.
    """
    if out.resolve() == folder.resolve():
        raise LoraDropError("name another folder to write to: the parts left out would be lost.")
    bank = AdapterBank.load(folder)
    if missing := sorted(parts - bank.parts):
        raise LoraDropError(f"{folder.name} has no part {missing[0]}; it has {', '.join(sorted(bank.parts))}.")
    bank.only(parts).save(out)
    before, after = ((one / WEIGHTS_NAME).stat().st_size for one in (folder, out))
    return before, after


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default="linear+head", help="those to keep (default linear+head)")
    args = parser.parse_args()
    try:
        before, after = slim(args.folder, args.out, frozenset(args.parts.split("+")))
    except LoraDropError as error:
        print(f"slim_bank: {error}", file=sys.stderr)
        return 2
    print(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
