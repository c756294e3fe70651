"""`drop-order`: find which layers to skip first."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command, load_with_config
from lora_drop.cli.output import note, print_json, print_table, say
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import config_from


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "drop-order", run, "which layers to skip first: a greedy order by measured KL")
    parser.add_path("--data", "FILE", "txt, json or jsonl files", nargs="+", required=True)
    parser.add_reading_options()
    parser.add_argument(
        "--windows", type=int, default=10, metavar="N", help="replies, or windows of other text, of up to 256 tokens"
    )
    parser.add_argument("--count", type=int, default=12, metavar="N", help="layers to choose")
    parser.add_model_options()
    parser.add_config_options()


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config_from(vars(args), None)  # a mistake in the options is reported at once
    if args.windows < 1:
        raise LoraDropError("--windows must be at least 1.")
    from lora_drop.adapters.find import find_bank
    from lora_drop.evaluation.order import drop_order
    from lora_drop.training.data import Turn, read_texts, to_rows
    from lora_drop.training.settings import TrainSettings

    turns = [Turn.parse(text) for text in args.chat]
    loaded, config = load_with_config(args, with_numbers=True)  # it runs the passes of training
    windows, counted = to_rows(read_texts(loaded, args.data, turns, args.file_tokens), TrainSettings.length)
    every = max(1, len(windows) // args.windows)
    texts = []
    for row, counts in zip(windows[::every][: args.windows], counted[::every], strict=False):
        first, *_, last = counts.nonzero()[:, 0].tolist()
        texts.append((row[None, : last + 1].to(loaded.device), first or len(row) // 4))  # (tokens, prompt's length)
    bank, notes = find_bank(loaded, config, config.schedule_for(loaded.num_layers))
    note(*notes)
    rows = drop_order(
        *(loaded, texts, config, bank, args.count), progress=lambda layer, kl: say(f"{layer} (KL {kl:.3f})")
    )
    if args.json:
        tokens = sum(tokens.numel() for tokens, _ in texts)
        print_json({"order": [row["layer"] for row in rows], "rows": rows, "tokens": tokens})
    else:
        print_table(rows, {"layer": ("layer",), "KL with all before it": ("kl", ".3f"), "alone": ("alone", ".3f")})
        print(f"--drop-order {','.join(str(row['layer']) for row in rows)}")
