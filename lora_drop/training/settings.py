"""The settings of a training run; apart from `train`, so that `--help` needs no torch."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_drop.errors import LoraDropError
from lora_drop.method.config import MAX_PERIOD, LoraDropConfig, default_range
from lora_drop.method.fields import TRAINING, checked, read_layer_order, setting
from lora_drop.method.presets import READABLE, Presets
from lora_drop.method.schedule import KvRule, Part, Refresh, ReuseRule
from lora_drop.method.settings import BY_NAME, MAX_SEED

TRACKERS = ("tensorboard", "wandb")
Loss = Literal["kl", "sharp", "argmax", "text"]


@checked(TRAINING)
class TrainSettings:
    """The settings of a training run, by the names of the command line. A checkpoint resumes only with the same.

    `period` and `drop_ratio` fix the schedule; None draws it for each batch. With a `drop_order` (see
    `lora_drop.evaluation.order`) half of the batches skip its first layers, their number drawn. With a `drop_count`
    two of three batches skip that many of them, and the others a number drawn around it.

    Raises:
        LoraDropError: a value is outside what it may be.
    """

    reuse: ReuseRule = setting("residual", "reuse rule to train for")
    part: Part = setting("block", "part of a layer that is skipped: all of it, or its attention")
    kv: KvRule = setting("write", "K/V rule to train for")
    period: int | None = setting(None, "train for this period only (default: drawn)", between=(2, MAX_PERIOD))
    drop_ratio: float | None = setting(
        None, "train for this drop ratio only (default: drawn)", between=(0, 1), above=True
    )
    drop_order: str | None = setting(
        None,
        "layers, the cheapest to skip first (see drop-order): half of the batches skip the first ones of this list",
        allowed="layers with commas, such as 14,9,12",
        metavar="14,9,12",
    )
    rank: int = setting(64, "rank r of the corrections", between=(1, 100_000))
    alpha: float = setting(64.0, "scale the corrections by alpha / r", between=(0, 1e6))
    # Trials did better from 0.3 to 0.5 than from 1.
    gate: float = setting(0.4, "initial gate of the residual rule", between=(-10, 10))
    max_tokens: int = setting(1_000_000, "the most tokens to train on", between=(1, 10**15))
    length: int = setting(256, "tokens in a window", between=(16, 10**6))
    batch_size: int = setting(8, "windows in a batch", between=(1, 10**6))
    learning_rate: float = setting(2e-3, "peak learning rate, after the warm-up", between=(0, 1), above=True)
    fit_batches: int = setting(16, "batches of the regression before training; 0: none", between=(0, 10**6))
    warmup: float = setting(0.05, "share of the steps that warm up", between=(0, 1))
    seed: int = setting(0, "random seed of windows, schedules and initial weights", between=(0, MAX_SEED))
    refresh: Refresh = setting(
        "repair",
        "refresh to train for; with repair and kv write a LoRA step sees the full model's states up to its anchor",
    )
    drop_count: int | None = setting(
        None,
        "how many layers of drop_order two of three batches skip, and every evaluation (default: drawn)",
        between=(1, 100_000),
    )
    head_rank: int = setting(192, "rank of the screened head's preview; 0: none", between=(0, 100_000))
    head_best: int = setting(1024, "tokens whose logits the screened head computes exactly", between=(1, 10**7))
    accumulate: int = setting(1, "batches per step, on each process", between=(1, 10**6))
    decay: float | None = setting(
        None,
        "keep the rate constant, then let it fall to 0 over this share of the steps; with --resume, decay and "
        "max_tokens may differ from before (default: a cosine from the warm-up on)",
        between=(0, 1),
    )

    loss: Loss = setting(
        "kl",
        "kl: KL(full || student); sharp: the same with the full model at temperature 0.5; argmax: cross-entropy on "
        "the full model's likeliest token; text: cross-entropy on the text, as in the paper's code",
    )

    def __post_init__(self) -> None:
        if self.drop_order is not None:
            if self.drop_ratio is not None:
                raise LoraDropError("drop_order and drop_ratio exclude each other: name one of them.")
            if not self.order or min(self.order) < 1 or len(set(self.order)) < len(self.order):
                raise LoraDropError("drop_order must list different layers from 1 upwards, such as 14,9,12.")
        if self.drop_count and self.drop_count > len(self.order):
            raise LoraDropError(f"drop_count {self.drop_count} needs a drop_order of as many layers or more.")

    @property
    def exact(self) -> bool:
        """Whether a refresh leaves the full model's caches and anchors, so that nothing before it matters."""
        return self.refresh == "repair" and self.kv == "write"

    @property
    def rules(self) -> dict[str, Any]:
        """The rules to train for, by name."""
        return {name: getattr(self, name) for name in ("reuse", "part", "kv", "refresh")}

    @property
    def order(self) -> tuple[int, ...]:
        """`drop_order` as layer numbers, in its order."""
        return read_layer_order(self.drop_order)

    def corrected(self, num_layers: int) -> list[int]:
        """The layers that get a correction: the paper's range, and those of the order."""
        low, high = default_range(num_layers)
        return sorted({*range(low, high + 1), *self.order})


@dataclass(frozen=True)
class TrainJob:
    """What a training run works on, and how; `TrainSettings` has what makes the bank.

    Args:
        out: gets checkpoints, log and adapter folder.
        data: text files; `chat` and `file_tokens` say how they are read, see `data.read_texts`.
        self_generate: how many texts the model writes itself, in addition.
        start: an adapter folder to go on from.
        held_out: a file of self-generated text that every evaluation reads; None keeps some windows apart for it.
        resume: go on from the last checkpoint in `out`.
        evaluate_every: in steps.
        checkpoint_every: in steps.
        report_to: the tracker of accelerate that gets each step's figures too, one of `TRACKERS`.
        model: as `load_model` takes it.
        device: the same.
        dtype: the same.

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
    report_to: str | None = None
    model: str = "bundled"
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "checkpoint_every", "file_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LoraDropError(f"--{name.replace('_', '-')} must be at least 1.")


def run_settings(settings: TrainSettings, num_layers: int, presets: Presets) -> dict[str, str]:
    """The settings for a run with the bank of a training, as texts by name; those at their defaults are left out.

    Args:
        presets: those of the model.
    """
    config = presets[READABLE].config if settings.exact else LoraDropConfig(period=2, drop_ratio=0.25)
    changes: dict[str, Any] = settings.rules | {"head": "screened" if settings.head_rank else "full"}
    if settings.period:
        changes["period"] = settings.period
    if settings.drop_ratio:
        changes |= {"drop_ratio": settings.drop_ratio, "drop_layers": None}
    if settings.order:
        count = settings.drop_count or len(config.schedule_for(num_layers).dropped)
        changes["drop_layers"] = tuple(sorted(settings.order[:count]))
    config = config.replace(**changes)
    listed = {"layers", "drop_ratio"} if config.drop_layers is not None else set()  # layers are named in one way
    names = [name for name in config.differences() if name not in listed]
    return {name: BY_NAME[name].kind.write(getattr(config, name)) for name in names}


def reproduce(settings: TrainSettings, job: TrainJob, model: str) -> str:
    """The `train` command that makes a bank: its data, how they are read, and settings other than the defaults."""
    defaults = TrainSettings()
    words = ["python", "-m", "lora_drop", "train", "--model", model]
    words += ["--data", *(path.name for path in job.data)] if job.data else []
    words += ["--chat", *job.chat] if job.chat else []
    words += ["--file-tokens", str(job.file_tokens)] if job.file_tokens else []
    words += ["--self-generate", str(job.self_generate)] if job.self_generate else []
    words += ["--start", job.start.name] if job.start else []
    for name, value in dataclasses.asdict(settings).items():
        if value != getattr(defaults, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", "OUT"])
