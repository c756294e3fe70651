"""`calibrate`: measure the presets' speeds on this machine, for the page and for `run`."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command, load
from lora_drop.cli.output import print_json, print_table, say, spread
from lora_drop.errors import LoraDropError
from lora_drop.run.results.files import CALIBRATION_SECONDS


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(
        commands, "calibrate", run, "measure the presets' speeds on this machine; the page shows no others"
    )
    parser.add_model_options()
    parser.add_argument(
        "--seconds",
        type=float,
        default=CALIBRATION_SECONDS,
        metavar="S",
        help=f"how long to measure (default {CALIBRATION_SECONDS:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not 0 < args.seconds < float("inf"):
        raise LoraDropError(f"--seconds must be a number above 0, got {args.seconds:g}.")
    from lora_drop.evaluation.measure.calibrate import Calibration
    from lora_drop.run.results.calibration import gain_here, write_calibration

    loaded = load(args)
    calibration = Calibration(loaded, args.seconds)
    calibration.go_on(loaded, progress=lambda share: say(f"{share:.0%} measured"))
    content = write_calibration(loaded, calibration.rows())
    if args.json:
        print_json(content)
        return 0
    gains = {None: "too noisy to tell", "faster": "faster", "same": "no gain", "slower": "slower"}
    print_table(
        content["rows"],
        {
            "lane": ("lane",),
            "speedup": ("speedup", ".2f", "x"),
            "95% interval": spread,
            "bound": ("bound", ".2f", "x"),
            "accepted": ("accepted", ".1%"),
            "here": lambda row: gains[gain_here(row)],
        },
    )
    return 0
