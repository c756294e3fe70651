"""The options of `train`, and those that say how text is read."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import parse_path
from lora_drop.training.settings import TrainSettings


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how text files are read."""
    parser.add_argument(
        "--chat",
        nargs="+",
        default=[],
        metavar="PROMPT:TARGET",
        help="fields of json and jsonl records that make a turn of chat, through the chat template; PROMPT may join "
        "several with +, a dot leads deeper: question:answer instruction+instances.0.input:instances.0.output",
    )
    parser.add_argument(
        "--file-tokens", type=int, metavar="N", help="at most about N tokens of each file, from its beginning"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    defaults = TrainSettings()
    parser.add_argument(
        "--data", type=parse_path, nargs="+", default=[], metavar="FILE", help="txt, json or jsonl files"
    )
    add_reading_options(parser)
    parser.add_argument(
        "--self-generate", type=int, default=0, metavar="N", help="also train on N texts that the model writes itself"
    )
    parser.add_argument("--start", type=parse_path, metavar="DIR", help="an adapter folder to go on from")
    parser.add_argument(
        "--out", type=parse_path, required=True, metavar="DIR", help="checkpoints and the adapter folder"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    for name in ("reuse", "part", "kv"):
        parser.add_argument(f"--{name}", default=getattr(defaults, name))
    parser.add_argument("--period", type=int, help="train for one period only (default: drawn)")
    parser.add_argument("--drop-ratio", type=float, help="train for one drop ratio only (default: drawn)")
    parser.add_argument(
        "--drop-order", metavar="14,9,12", help="half of the batches drop the first layers of this list (drop-order)"
    )
    for name, kind in (
        *(("rank", int), ("alpha", float), ("gate", float), ("max_tokens", int), ("length", int)),
        *(("batch_size", int), ("learning_rate", float), ("fit_batches", int), ("warmup", float), ("seed", int)),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(defaults, name))
    parser.add_argument("--evaluate-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--checkpoint-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
