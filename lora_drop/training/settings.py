"""What a training run is asked to do; apart from `train`, so that the command line's `--help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.options import parse_list


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


@dataclass(frozen=True)
class TrainJob:
    """What a training run works on, and how; `TrainSettings` has what makes the bank.

    Args:
        out: gets checkpoints, log and adapter folder.
        data: text files; `chat` and `file_tokens` say how they are read, see `data.read_texts`.
        self_generate: how many texts the model writes itself, in addition.
        start: an adapter folder to go on from.
        resume: go on from the last checkpoint in `out`.
        evaluate_every, checkpoint_every: in steps.
        model, device, dtype: as `load_model` takes them.
        quiet: no progress bars.

    Raises:
        LoraDropError: a number below 1.
    """

    out: Path
    data: list[Path] = field(default_factory=list)
    chat: list[str] = field(default_factory=list)
    file_tokens: int | None = None
    self_generate: int = 0
    start: Path | None = None
    resume: bool = False
    evaluate_every: int = 50
    checkpoint_every: int = 20
    model: str = "bundled"
    device: str = "auto"
    dtype: str = "auto"
    quiet: bool = False

    def __post_init__(self):
        for name in ("evaluate_every", "checkpoint_every", "file_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LoraDropError(f"--{name.replace('_', '-')} must be at least 1.")
