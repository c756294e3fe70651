"""`reproduce`: measure the README's table again on this machine."""

from __future__ import annotations

import argparse
import os
from functools import partial

from lora_drop.cli.arguments import Commands, add_command, read_measured
from lora_drop.cli.output import Column, Row, cell, note, print_json, print_table, progress, say, spread
from lora_drop.errors import LoraDropError


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "reproduce", run, "measure README.md's table again on this machine, row by row")
    parser.add_argument("what", choices=["README"], help="whose table; its rows are those of the bundled model")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts (default as many as shipped)")
    parser.add_path("--out", "DIR", "gets compare.json; goes on where it ended (default in the cache folder)")
    parser.set_defaults(data=None, prompt_field="prompt")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from lora_drop.evaluation.reproduce import conditions, reproduce, seconds_needed
    from lora_drop.models.load import load_model
    from lora_drop.paths import SHIPPED_METHODS, cache_dir
    from lora_drop.run.results.files import COMPARE

    shipped = COMPARE.read(SHIPPED_METHODS / COMPARE.name)
    if args.limit is None:
        args.limit = shipped["data"]["prompts"]
    prompts, model = read_measured(args), shipped["model"]["id"]
    try:
        loaded = load_model(model)
    except LoraDropError as error:
        raise LoraDropError(
            f"the table is of {model}, which cannot be loaded here, so no row was measured: {error}"
        ) from None
    folder = args.out or cache_dir() / "reproduced" / f"{prompts.about['sha256'][:16]}-{len(prompts.texts)}"
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1:
        note(f"this machine is busy (load {os.getloadavg()[0]:.1f}): rows may differ for that. It is better idle.")
    seconds = seconds_needed(loaded, shipped, prompts)
    time = f" takes about {max(1, round(seconds / 60))} min" if seconds else ""
    say(f"{len(prompts.texts)} prompts, all methods in turn:{time}. Stopped, the same command goes on.")
    with COMPARE.writing(folder), progress("prompts", 60) as show:
        rows = reproduce(loaded, shipped, prompts, folder, show)
    note(*conditions(shipped, rows, prompts), f"measured once, in {folder}; delete it to measure again.")
    if args.json:
        print_json(rows)
        return
    columns: dict[str, Column] = {"method": ("label",)}
    for side in ("there", "here"):
        columns |= {
            f"speedup {side}": partial(_figure, side, "speedup"),
            f"regret {side}": partial(_figure, side, "regret"),
        }
    print_table(rows, columns | {"": ("verdict",)})


def _figure(side: str, name: str, row: Row) -> str:
    return f"{cell(row[side][name], '.2f')} ({spread(row[side], name)})"
