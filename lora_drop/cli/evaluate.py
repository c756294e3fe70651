"""`evaluate`: teacher-forced quality."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import (
    Commands,
    add_command,
    add_config_options,
    add_data_options,
    add_json_option,
    add_model_options,
    load,
    read_data,
)
from lora_drop.cli.output import counting, print_json
from lora_drop.method.options import config_from


def add(commands: Commands) -> None:
    """The command's options."""
    parser = add_command(commands, "evaluate", run, "teacher-forced quality through the real decode schedule")
    add_data_options(parser)
    add_model_options(parser)
    add_config_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    config = config_from(vars(args), args.model)
    pairs = read_data(args)  # its mistakes are reported before a model is loaded
    from lora_drop.evaluation.metrics import evaluate

    with counting("tokens") as show:
        result = evaluate(load(args), config, iter(pairs), args.context_tokens, show)
    if args.json:
        print_json(result)
        return 0
    print(f"{result['tokens']} tokens   NLL full -> LoRA-Drop   KL      same next token")
    for label, key in (("LoRA steps", "lora_steps"), ("all steps", "all_steps")):
        row = result[key]
        if not row["count"]:
            print(f"{label:<12} none")
            continue
        print(
            f"{label:<12} {row['nll_baseline']:.4f} -> {row['nll_lora_drop']:.4f}      "
            f"{row['kl']:.4f}  {row['top1_agreement']:.1%}"
        )
    if every := result["config"]["average_period"]:
        print(f"one decode step in {every:.2f} was full")
    return 0
