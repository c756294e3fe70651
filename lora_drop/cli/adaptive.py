"""`adaptive`: do early refreshes beat fixed schedules of the same average period?"""

from __future__ import annotations

import argparse
from typing import Any

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
from lora_drop.cli.output import cell, counting, print_json
from lora_drop.errors import LoraDropError
from lora_drop.method.options import config_from


def add(commands: Commands) -> None:
    """The command's options."""
    parser = add_command(
        commands, "adaptive", run, "do early refreshes beat fixed schedules of the same average period?"
    )
    add_data_options(parser)
    add_model_options(parser)
    add_config_options(parser)
    parser.add_argument("--triggers", default="entropy,norm", metavar="NAME,NAME")
    parser.add_argument("--quantiles", default="0.5,0.7,0.85,0.95", metavar="Q,Q,...", help="thresholds to scan")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    config, pairs = config_from(vars(args), args.model), read_data(args)
    try:
        quantiles = [float(text) for text in args.quantiles.split(",")]
    except ValueError:
        raise LoraDropError("--quantiles must be numbers with commas, such as 0.5,0.9.") from None
    from lora_drop.evaluation.adaptive import compare

    triggers = args.triggers.split(",")
    with counting("points") as show:
        result = compare(load(args), config, pairs, triggers, quantiles, args.context_tokens, show)
    if args.json:
        print_json(result)
        return 0
    for text in result["config"]["notes"]:
        print(f"note: {text}")
    for part, title in (("choosing", "Choosing a threshold"), ("judging", "Judging it on other records")):
        if result[part] is not None:
            _show_part(result[part], title)
    print(f"\n{_verdict(result)}")
    return 0


def _show_part(part: dict[str, Any], title: str) -> None:
    print(f"\n{title}, {part['fixed'][0]['tokens']} tokens")
    print("schedule                  one full in   NLL gap  same next  at that period, fixed   gain, nats")
    for row in [*part["fixed"], *part["adaptive"]]:
        name = f"period {row['period']}" if "period" in row else f"{row['trigger']} >= {row['threshold']:.4g}"
        line = f"{name:<26}{cell(row['average_period'], '.2f'):>11}  {row['nll_gap']:8.4f}  {row['agreement']:8.1%}"
        if "nll_gain" in row:
            line += f"   {row['fixed_nll_gap']:8.4f}  {row['fixed_agreement']:8.1%}   {row['nll_gain']:+10.4f}"
        print(line)


def _verdict(result: dict[str, Any]) -> str:
    chosen, judging = result["chosen"], result["judging"]
    if chosen is None:
        return "No trigger saw anything to set a threshold by."
    option = f"--refresh-{chosen['trigger']} {chosen['threshold']:.6g}"
    if judging is None:
        return f"Best here: {option}. One record cannot judge what was chosen on it: give more."
    gain = judging["adaptive"][0]
    verdict = "wins against" if result["wins"] else "does not win against"
    return (
        f"{option} {verdict} a fixed schedule of the same average period: {gain['nll_gain']:+.4f} nats per token, "
        f"{gain['agreement_gain']:+.1%} agreement."
    )
