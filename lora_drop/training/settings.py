"""The settings of a training run; apart from `train`, so that `--help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.settings import TRAINING, fields, settings_of
from lora_drop.method.values import LayerList, unreadable

_Fields: Any = fields("TrainSettings", settings_of(TRAINING))


class TrainSettings(_Fields):
    """The settings of a training run, by the names of the command line; a checkpoint goes on only with the same.

    `period` and `drop_ratio` fix the schedule; None draws it for each batch. With a `drop_order` (layers with commas,
    the cheapest to skip first; see `lora_drop.evaluation.order`) half of the batches skip a drawn number of its first;
    with a `drop_count` two of three skip that many, and the others a number drawn around it.

    Raises:
        LoraDropError: a value is outside what it may be.
    """

    def check(self) -> None:
        if self.drop_order is not None:
            if self.drop_ratio is not None:
                raise LoraDropError("drop_order and drop_ratio exclude each other: name one of them.")
            if not self.order or not 0 < min(self.order) or len(set(self.order)) < len(self.order):
                raise LoraDropError("drop_order must list different layers from 1 upwards, such as 14,9,12.")
        if self.drop_count and self.drop_count > len(self.order):
            raise LoraDropError(f"drop_count {self.drop_count} needs a drop_order of as many layers or more.")
        exact = self.refresh == "repair"
        if exact and self.kv != "write":
            raise LoraDropError("training for refresh repair needs kv write: name it, or train for refresh single.")
        if (self.mlp_width or self.kept_rank) and not exact:
            raise LoraDropError("mlp_width and kept_rank need refresh repair: name it, or leave them at 0.")

    @property
    def order(self) -> tuple[int, ...]:
        """`drop_order` as layer numbers, in its order."""
        try:
            return LayerList().from_text(self.drop_order or "")
        except ValueError as error:
            raise unreadable("drop_order", LayerList(), self.drop_order, error) from None


@dataclass(frozen=True)
class TrainJob:
    """What a training run works on, and how; `TrainSettings` has what makes the bank.

    Args:
        out: gets checkpoints, log and adapter folder.
        data: text files; `chat` and `file_tokens` say how they are read, see `data.read_texts`.
        self_generate: how many texts the model writes itself, in addition.
        start: an adapter folder to go on from; parts that it lacks are added.
        held_out: a file of self-generated text that every evaluation reads; None keeps some windows apart for it.
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
    held_out: Path | None = None
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
