"""`recommend`: the fastest setting of a sweep within a limit."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command, add_json_option, parse_path
from lora_drop.cli.output import cell, print_json
from lora_drop.errors import LoraDropError


def add(commands: Commands) -> None:
    """The command's options."""
    parser = add_command(commands, "recommend", run, "the fastest setting of a sweep within a limit")
    parser.add_argument("sweep", type=parse_path, metavar="SWEEP.json")
    parser.add_argument(
        "--min-agreement", type=float, help="least share of LoRA steps with the same next token, e.g. 0.9"
    )
    parser.add_argument("--max-nll-gap", type=float, help="most quality loss over all steps, nats per token, e.g. 0.1")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    from lora_drop.evaluation.recommend import recommend

    if args.min_agreement is None and args.max_nll_gap is None:
        raise LoraDropError("name a limit: --min-agreement, --max-nll-gap, or both.")
    row = recommend(args.sweep, args.min_agreement, args.max_nll_gap)
    if row is None:
        raise LoraDropError(f"no setting in {args.sweep.name} stays within that limit: relax it, or train adapters.")
    if args.json:
        print_json(row)
        return 0
    print(
        f"--period {row['period']} --drop-ratio {row['drop_ratio']} --reuse {row['reuse']} --part {row['part']} "
        f"--kv {row['kv']}   (adapters {row.get('adapters', 'not recorded')}, {cell(row['speedup'], '.2f')}x, "
        f"bound {cell(row['bound'], '.2f')}x, KV saved {cell(row['kv_saved'], '.1%')})"
    )
    return 0
