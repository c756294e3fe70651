"""`compare`: methods beside the full model, on one clock."""

from __future__ import annotations

import argparse
from functools import partial

from lora_drop.cli.arguments import Commands, add_command, load, read_measured
from lora_drop.cli.output import Column, Row, cell, note, print_json, print_table, progress, spread
from lora_drop.errors import LoraDropError

SEARCHED = 8  # prompts
COLUMNS: dict[str, Column] = {
    "method": ("method",),
    "speedup": ("speedup", ".2f", "x"),
    "95%": spread,
    "bound": ("bound", ".2f", "x"),
    "layer reads": ("layer_runs", ".1f"),
    "layer rows": ("layer_rows", ".1f"),
    "accepted": ("accepted", ".1%"),
    "regret": ("regret", ".3f"),
    "95% ": lambda row: spread(row, "regret"),
    "KV saved": ("kv_saved", ".1%"),
}


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "compare", run, "measure methods beside the full model: speed against regret")
    parser.add_argument(
        "--methods",
        metavar="NAME,NAME:VALUE,...",
        help="such as balanced,layerskip,prompt-lookup:6:3 (default all); values that are not named are searched",
    )
    parser.add_prompt_options()
    parser.add_argument("--max-new-tokens", type=int, default=128, help="most tokens of an answer (default 128)")
    parser.add_model_options()
    parser.add_out("gets compare.json and methods.svg; goes on where it ended")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from lora_drop.evaluation.rivals import ALL, compare_methods
    from lora_drop.run.results.compared import reported, winner_words
    from lora_drop.run.results.files import COMPARE
    from lora_drop.run.results.prompts import HELD_OUT

    if args.max_new_tokens < 2:
        raise LoraDropError(f"--max-new-tokens must be at least 2, got {args.max_new_tokens}.")
    prompts = read_measured(args)
    methods = dict.fromkeys(name.strip() for name in args.methods.split(",")) if args.methods else ALL
    with COMPARE.writing(args.out), progress("prompts", 60) as show:
        places = args.out, args.max_new_tokens, show
        content = compare_methods(load(args), methods, prompts, HELD_OUT[:SEARCHED], *places)
    note(*(row["refused"] for row in content["rows"] if "refused" in row))
    if args.json:
        print_json(content)
        return
    rows = reported(content)
    print_table(rows, COLUMNS)
    for split, words in (("by_repeats", "Of answers that repeat"), ("by_kind", "By kind of prompt")):
        groups = dict.fromkeys(group for row in rows for group in row.get(split, ()))
        if len(groups) > 1:
            print(f"\n{words}:")
            print_table(rows, {"method": ("method",)} | {group: partial(_part, split, group) for group in groups})
    print(f"\n{winner_words(content)}")


def _part(split: str, group: str, row: Row) -> str:
    part = row.get(split, {}).get(group, {})
    return f"{cell(part.get('speedup'), '.2f', 'x')} {spread(part)}"
