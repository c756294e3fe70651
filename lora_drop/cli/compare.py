"""`compare`: methods beside the full model, on one clock."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command, load, read_data_prompts
from lora_drop.cli.output import Column, print_json, print_table, progress, spread
from lora_drop.errors import LoraDropError

TOKENS, SEARCHED, REPORTED = 96, 8, 32
COLUMNS: dict[str, Column] = {
    "method": ("method",),
    "speedup": ("speedup", ".2f", "x"),
    "95%": spread,
    "bound": ("bound", ".2f", "x"),
    "layer runs": ("layer_runs", ".1f"),
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
    parser.add_path("--data", "FILE.jsonl", "reported prompts (default the last of those settings are chosen on)")
    parser.add_argument("--prompt-field", metavar="NAME", help="default prompt")
    parser.add_argument("--limit", type=int, default=REPORTED, help=f"only the first N prompts (default {REPORTED})")
    parser.add_argument("--max-new-tokens", type=int, default=TOKENS, help=f"of an answer (default {TOKENS})")
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
    prompts = read_data_prompts(args)
    if args.data is None:
        prompts = list(HELD_OUT[SEARCHED : SEARCHED + len(prompts)])
    searched_on = HELD_OUT[: min(SEARCHED, len(prompts))]
    methods = dict.fromkeys(name.strip() for name in args.methods.split(",")) if args.methods else ALL
    source = {"file": args.data.name if args.data else "held-out prompts", "limit": args.limit}
    with COMPARE.writing(args.out), progress("rows") as show:
        places = source, args.out, args.max_new_tokens, show
        content = compare_methods(load(args), methods, prompts, searched_on, *places)
    if args.json:
        print_json(content)
        return
    print_table(reported(content), COLUMNS)
    print(winner_words(content))
