"""The settings of a training run and its command-line options; apart from `train`, so that `--help` needs no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from lora_drop.config import LoraDropConfig
from lora_drop.errors import LoraDropError
from lora_drop.options import parse_list, parse_path


@dataclass(frozen=True)
class TrainSettings:
    """What a training run is asked to do; a checkpoint goes on only with the same.

    `period` and `drop_ratio` fix the schedule; None draws it for each batch. With a `drop_order` (layers with commas,
    the cheapest to drop first; see `lora_drop.evaluation.order`) half of the batches drop a drawn number of its first.
    """

    reuse: str = "residual"
    part: str = "block"
    kv: str = "skip"
    period: int | None = None
    drop_ratio: float | None = None
    drop_order: str | None = None
    rank: int = 64
    alpha: float = 64.0
    gate: float = 0.4  # where g starts: trials found 0.3 to 0.5 better than 1
    max_tokens: int = 1_000_000
    length: int = 256
    batch_size: int = 8
    learning_rate: float = 2e-3
    fit_batches: int = 16  # batches of the regression that training starts from; 0 starts from nothing
    warmup: float = 0.05  # share of the steps
    seed: int = 0

    def __post_init__(self):
        LoraDropConfig(reuse=self.reuse, part=self.part, kv=self.kv)
        if self.period is not None and self.period < 2:
            raise LoraDropError(f"period must be at least 2 to train: period 1 has no LoRA step; got {self.period}.")
        if self.drop_ratio is not None and not LoraDropConfig(drop_ratio=self.drop_ratio).drop_ratio:
            raise LoraDropError("drop_ratio must be above 0 to train: with 0 nothing is dropped.")
        if self.drop_order is not None:
            if self.drop_ratio is not None:
                raise LoraDropError("drop_order and drop_ratio exclude each other: name one of them.")
            if not self.order or LoraDropConfig(drop_layers=self.order).drop_layers is None:
                raise LoraDropError("drop_order names no layer: list some, such as 14,9,12.")
        for name, low in (("rank", 1), ("max_tokens", 1), ("length", 16), ("batch_size", 1), ("fit_batches", 0)):
            if getattr(self, name) < low:
                raise LoraDropError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        for name, low, high in (("alpha", 0, 1e6), ("gate", -10, 10), ("warmup", 0, 1), ("seed", 0, 2**63 - 1)):
            if not low <= getattr(self, name) <= high:  # also refuses NaN
                raise LoraDropError(f"{name} must lie between {low} and {high:g}, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1:
            raise LoraDropError(f"learning_rate must lie between 0 and 1, got {self.learning_rate}.")

    @property
    def order(self) -> tuple[int, ...]:
        """`drop_order` as layer numbers."""
        return parse_list(self.drop_order or "", "drop_order")


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
