"""`evaluate`: quality of a setting on given targets, on the full model's own answers, and of the text it writes."""

from __future__ import annotations

import argparse
from typing import Any

from lora_drop.cli.arguments import Commands, add_command, load_with_config, read_data, read_data_prompts
from lora_drop.cli.output import note, print_result, print_table, progress
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import config_from


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        "quality through the real decode schedule, on given texts or on the full model's own answers",
        description="Without --data the prompts are those that settings are chosen on.",
    )
    parser.add_data_options(required=False)
    parser.add_argument(
        "--target",
        choices=("given", "own"),
        help="score a field of the records (given; the default with --target-field), or the full model's own greedy "
        "answer to each prompt (own)",
    )
    parser.add_argument(
        "--free", action="store_true", help="also let the setting answer each prompt, and let the full model score it"
    )
    parser.add_model_options()
    parser.add_config_options()


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config_from(vars(args), None)  # a mistake in the options is reported at once
    on_answers = args.target == "own" or (args.target is None and args.free and args.target_field is None)
    if not on_answers and None in (args.data, args.prompt_field, args.target_field):
        raise LoraDropError("name --data, --prompt-field and --target-field, or take --target own.")
    pairs = [] if on_answers else read_data(args)  # before the model: a mistake in the file is reported at once
    prompts = read_data_prompts(args) if on_answers else [prompt for prompt, _ in pairs]
    from lora_drop.evaluation.measure.metrics import evaluate, evaluate_free
    from lora_drop.evaluation.measure.texts import given_texts, own_answers

    loaded, config = load_with_config(args)
    texts = None if on_answers else given_texts(loaded, pairs, args.context_tokens)
    if on_answers or args.free:
        with progress("answers", quiet=args.json) as show:
            answers = own_answers(loaded, prompts, args.context_tokens, show)
        texts = texts or answers.texts()
    assert texts is not None  # the targets are given, or the answers
    if not texts.pairs:
        raise LoraDropError(
            "every answer of the full model is empty or goes in circles, so none can be a target: take other prompts."
        )
    with progress("tokens", quiet=args.json) as show:
        result = evaluate(loaded, config, texts, show)
        if args.free:
            result["free"] = evaluate_free(loaded, config, answers, show)
    print_result(args, result, lambda: _show(result))


def _show(result: dict[str, Any]) -> None:
    from lora_drop.evaluation.measure.metrics import GROUPS

    config, free = result["config"], result.get("free")
    note(*config["notes"])
    groups = [{"label": name.replace("_", " ").replace("lora", "LoRA"), **result[name]} for name in GROUPS]
    print_table(
        groups,
        {
            f"{result['tokens']} tokens": ("label",),
            "NLL, full model": ("nll_baseline", ".4f"),
            "LoRA-Drop": ("nll_lora_drop", ".4f"),
            "quality loss (KL)": ("kl", ".4f"),
            "same next token": ("top1_agreement", ".1%"),
        },
    )
    if result["loss_interval"]:
        low, high = result["loss_interval"]
        print(f"quality loss over all steps: {low:.4f} to {high:.4f} in 95 of 100 draws of the prompts")
    if config["average_period"]:
        print(f"one decode step in {config['average_period']:.2f} was full")
    if config.get("left_out"):
        print(f"{config['left_out']} of {config['prompts']} answers were empty or went in circles, and are left out")
    if config["draft"]:
        print("accept has no effect on a forced text: these are the drafts' figures; --free measures accepted text")
    if free:
        print(
            f"free text, {free['tokens']} tokens read by the full model: regret {free['regret']:.4f}, worst token "
            f"{free['worst']:.2f}, its own choice at {free['own_choices']:.1%}, repeated 4-grams "
            f"{free['repeated_4grams']:.1%} (full model's own answers {free['repeated_4grams_baseline']:.1%}), "
            f"{free['collapsed']} went in circles"
        )
        if free["regret_low"] is not None:
            print(
                f"in 95 of 100 draws of the prompts: regret {free['regret_low']:.4f} to {free['regret_high']:.4f}, "
                f"repeated 4-grams {free['repeats_above_low']:+.1%} to {free['repeats_above_high']:+.1%} above those "
                "of the full model's answers"
            )
