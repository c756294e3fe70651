"""`train`: distil adapters from the full model."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from contextlib import nullcontext
from functools import partial

from lora_drop.cli.arguments import Commands, add_command, read_settings
from lora_drop.cli.output import print_json, progress, say
from lora_drop.method.fields import settings_in
from lora_drop.paths import only_writer
from lora_drop.run.report.commands import COMMAND
from lora_drop.training.settings import TRACKERS, TrainJob, TrainSettings

PROMPT = "Explain why the sky is blue."  # of the command that is printed last


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "train", run, "distil adapters from the full model")
    parser.add_path("--data", "FILE", "txt, json or jsonl files", nargs="+", default=[])
    parser.add_reading_options()
    parser.add_argument(
        "--self-generate", type=int, default=0, metavar="N", help="also train on N texts that the model writes itself"
    )
    parser.add_path("--start", "DIR", "an adapter folder to go on from")
    parser.add_path("--held-out", "FILE", "self-generated text for the evaluations (default: windows kept apart)")
    parser.add_out("checkpoints and the adapter folder")
    parser.add_model_options()
    parser.add_settings(settings_in(TrainSettings))
    parser.add_argument("--evaluate-every", type=int, default=TrainJob.evaluate_every, metavar="STEPS")
    parser.add_argument("--checkpoint-every", type=int, default=TrainJob.checkpoint_every, metavar="STEPS")
    parser.add_argument(
        "--report-to", choices=TRACKERS, help="also send each step's figures to this tracker, which must be installed"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    settings = TrainSettings(**read_settings(args, settings_in(TrainSettings)))
    job = TrainJob(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainJob)})
    from lora_drop.adapters.card import dropped_in
    from lora_drop.training.train import train

    is_first = os.environ.get("RANK", "0") == "0"  # of a launch's processes, which share the folder
    with only_writer(job.out, "a training") if is_first else nullcontext():
        result = train(settings, job, say, partial(progress, every=30, quiet=args.json))
    if result is None:  # the launch's first process prints it
        return
    if args.json:
        print_json(result)
        return
    for row in result["evaluation"]["schedules"]:
        where = f"period {row['period']}, {dropped_in(row)}"
        print(f"{where}: KL {row['kl']:.3f}, same next token {row['top1_agreement']:.1%}")
    print(f"adapters: {result['adapters']}")
    model = [] if args.model == "bundled" else ["--model", args.model]
    print(f"{COMMAND} {shlex.join(['--prompt', PROMPT, *model, '--adapters', result['adapters']])}")
