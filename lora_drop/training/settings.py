"""The settings of a training run; apart from `train`, so that `--help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_drop.errors import LoraDropError
from lora_drop.method.config import MAX_PERIOD
from lora_drop.method.fields import TRAINING, checked, setting
from lora_drop.method.kinds import read_layer_order
from lora_drop.method.schedule import KvRule, Part, Refresh, ReuseRule
from lora_drop.method.settings import MAX_SEED


@checked(TRAINING)
class TrainSettings:
    """The settings of a training run, by the names of the command line; a checkpoint goes on only with the same.

    `period` and `drop_ratio` fix the schedule; None draws it for each batch. With a `drop_order` (layers with commas,
    the cheapest to skip first; see `lora_drop.evaluation.order`) half of the batches skip a drawn number of its first;
    with a `drop_count` two of three skip that many, and the others a number drawn around it.

    Raises:
        LoraDropError: a value is outside what it may be.
    """

    reuse: ReuseRule = setting("residual", "the rule that the corrections are for")
    part: Part = setting("block", "the part that they are for")
    kv: KvRule = setting("skip", "the K/V rule that they are for")
    period: int | None = setting(None, "train for one period only (default: drawn)", low=2, high=MAX_PERIOD)
    drop_ratio: float | None = setting(
        None, "train for one drop ratio only (default: drawn)", low=0, high=1, above=True
    )
    drop_order: str | None = setting(
        None,
        "layers, the cheapest to skip first (drop-order): half of the batches skip the first ones of this list",
        allowed="layers with commas, such as 14,9,12",
        metavar="14,9,12",
    )
    rank: int = setting(64, "r of the corrections", low=1, high=100_000)
    alpha: float = setting(64.0, "their scale is alpha / r", low=0, high=1e6)
    # Trials found a start at 0.3 to 0.5 better than at 1.
    gate: float = setting(0.4, "where the gate of the residual rule starts", low=-10, high=10)
    max_tokens: int = setting(1_000_000, "the most tokens to train on", low=1, high=10**15)
    length: int = setting(256, "tokens of a window", low=16, high=10**6)
    batch_size: int = setting(8, "windows of a batch", low=1, high=10**6)
    learning_rate: float = setting(2e-3, "the highest one, after the warm-up", low=0, high=1, above=True)
    fit_batches: int = setting(16, "batches of the regression it starts from; 0: none", low=0, high=10**6)
    warmup: float = setting(0.05, "share of the steps", low=0, high=1)
    seed: int = setting(0, "of windows, schedules and start", low=0, high=MAX_SEED)
    refresh: Refresh = setting(
        "single",
        "the refreshes that they are for; with repair a LoRA step sees the full model's states up to its anchor",
    )
    drop_count: int | None = setting(
        None,
        "how many first layers of drop_order two of three batches skip, and evaluation too (default: drawn)",
        low=1,
        high=100_000,
    )
    mlp_width: int = setting(0, "neurons of a skipped layer's mlp part; 0: none", low=0, high=10**6)
    kept_rank: int = setting(0, "rank of the kept part, of layers that run; 0: none", low=0, high=100_000)
    head_rank: int = setting(0, "rank of the screened head's preview; 0: none", low=0, high=100_000)
    head_best: int = setting(2048, "tokens whose logits the screened head computes exactly", low=1, high=10**7)
    accumulate: int = setting(1, "batches of a step, on each process", low=1, high=10**6)
    decay: float | None = setting(
        None,
        "keep the rate constant, and let it fall to 0 over this share of the steps at the end; with --resume it and "
        "--max-tokens may be others than before (default: a cosine from the warm-up on)",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
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
        return read_layer_order(self.drop_order)


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
