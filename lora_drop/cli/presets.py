"""`presets`: measure every preset."""

from __future__ import annotations

import argparse
import hashlib

from lora_drop.cli.arguments import Commands, add_command, data_source, load, read_data
from lora_drop.cli.output import Column, note, print_result, print_table, progress, spread

COLUMNS: dict[str, Column] = {
    "preset": ("preset",),
    "own loss": ("own_all_steps_kl", ".3f"),
    "given loss": ("all_steps_kl", ".3f"),
    "regret": ("free_regret", ".3f"),
    "95%": lambda row: spread(row, "free_regret"),
    "worst": ("free_worst", ".1f"),
    "repeats": ("free_repeated_4grams", ".1%"),
    "full model's": ("free_repeated_4grams_baseline", ".1%"),
    "speedup": ("speedup", ".2f", "x"),
    "95% ": spread,
    "KV saved": ("kv_saved", ".1%"),
}


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "presets", run, "measure every preset")
    parser.add_data_options()
    parser.add_path(
        "--prompts", "FILE.jsonl", "to answer, in a field prompt (default: the 96 that figures are reported on)"
    )
    parser.add_model_options()
    parser.add_argument("--adapters", metavar="NAME", help="measure with this folder or repository (default: shipped)")
    parser.add_out("gets presets.json; goes on where it ended")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    pairs = read_data(args)
    from lora_drop.evaluation.measure.pairs import read_prompt_set
    from lora_drop.evaluation.presets import measure_presets
    from lora_drop.run.results.files import PRESETS_FILE
    from lora_drop.run.results.preset_results import reads_well

    prompts = read_prompt_set(args.prompts) if args.prompts else read_prompt_set()
    source = data_source(args) | {"file_sha256": hashlib.sha256(args.data.read_bytes()).hexdigest()}
    with PRESETS_FILE.writing(args.out), progress("prompts", 60) as timed, progress("rows") as show:
        more = args.context_tokens, show, timed, args.adapters
        result = measure_presets(load(args), pairs, source, prompts, args.out, *more)
    note(*result["notes"], *(row["refused"] for row in result["rows"] if "refused" in row))
    reading: dict[str, Column] = {
        "reads well": lambda row: "yes" if reads_well(row) else "no",
        "adapters": ("adapters",),
    }
    print_result(args, result, lambda: print_table(result["rows"], COLUMNS | reading))
