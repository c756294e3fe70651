"""The paper's figures (LoRA-Drop, arXiv 2601.02569), as data. They appear beside our measurements, never as ours.

The table is second-hand, from a summary of the paper: other models, trained adapters of rank 16, accuracy averaged
over tasks. The summary does not say what "ratio" and "k" count, so the bound of a row and its K/V depend on how they
are read (`READINGS`). The published code was read itself (github.com/hosseinbv/LoRA-Drop at 573412c): docs/paper.md.
No tensors, so that figures can use it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_drop.method.config import default_range
from lora_drop.method.cost import Corrections, ModelShape, kv_saved, speed_bound
from lora_drop.method.schedule import Schedule, dropped_layers

SOURCE = "arXiv 2601.02569"
LABEL = f"the paper's figures ({SOURCE}), second-hand: from a summary of it"
RANK = 16
SAFE_DROP_RATIO, SAFE_K = 0.5, 3  # the largest of the safe zone that the paper claims


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's table.

    Args:
        model: the name in the paper.
        drop_ratio: p.
        k: the LoRA steps between two full ones.
        accuracy_full: average task accuracy of the full model, in percent.
        accuracy: the same with LoRA-Drop.
        speedup: times the full model's speed.
        kv_saved: share of the KV memory; "about", says the paper.
    """

    model: str
    drop_ratio: float
    k: int
    accuracy_full: float
    accuracy: float
    speedup: float
    kv_saved: float

    @property
    def period(self) -> int:
        """w = k + 1."""
        return self.k + 1

    @property
    def accuracy_change(self) -> float:
        """Percentage points; negative is a loss."""
        return round(self.accuracy - self.accuracy_full, 1)

    @property
    def bound(self) -> float:
        """The bound by the first reading, which this program's settings follow."""
        return self.bounds[0]

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bound of the row's model by each of `READINGS`: see `bound_of`."""
        return tuple(bound_of(self.model, self.drop_ratio, self.k, reading) for reading in READINGS)

    @property
    def kv_limits(self) -> tuple[float, ...]:
        """By each of `READINGS` the share of KV bytes that the exact formula saves, without a prompt: the most of any
        run of whole periods."""
        schedules = (reading.schedule(self.model, self.drop_ratio, self.k) for reading in READINGS)
        return tuple(kv_saved(SHAPES[self.model], schedule, 0, schedule.period) for schedule in schedules)


# Sizes of the published models; a test compares them with `models/random_weights.py`.
SHAPES = {
    "LLaMA2-7B": ModelShape(32, 4096, 32, 32, 128, 11_008, 32_000, tied=False),
    "Qwen2.5-7B": ModelShape(28, 3584, 28, 4, 128, 18_944, 152_064, tied=False, qkv_bias=True),
    "LLaMA3-8B": ModelShape(32, 4096, 32, 8, 128, 14_336, 128_256, tied=False),
    "Qwen2.5-14B": ModelShape(48, 5120, 40, 8, 128, 13_824, 152_064, tied=False, qkv_bias=True),
}

ROWS = (
    PaperRow("LLaMA2-7B", 0.5, 3, 64.6, 64.5, 1.68, 0.40),
    PaperRow("LLaMA2-7B", 0.75, 3, 64.6, 62.8, 2.35, 0.65),
    PaperRow("Qwen2.5-7B", 0.5, 3, 66.5, 66.3, 1.73, 0.42),
    PaperRow("Qwen2.5-7B", 0.75, 3, 66.5, 64.1, 2.42, 0.68),
    PaperRow("LLaMA3-8B", 0.5, 3, 67.7, 67.4, 1.70, 0.43),
    PaperRow("LLaMA3-8B", 0.75, 3, 67.7, 65.3, 2.38, 0.67),
    PaperRow("Qwen2.5-14B", 0.75, 3, 69.3, 66.8, 2.60, 0.70),
)


@dataclass(frozen=True)
class Reading:
    """A way to read the paper's ratio p and its k.

    Args:
        label: in words.
        is_of_all: p is a share of all layers; else of those that the paper lets be skipped, 3 to L - 2.
        cycles: full steps come every `cycles` (k + 1) steps.
        by_position: steps whose token's position is a multiple of k + 1 are full too.
    """

    label: str
    is_of_all: bool
    cycles: int
    by_position: bool = False

    def schedule(self, model: str, drop_ratio: float, k: int) -> Schedule:
        """The schedule of a setting of the paper on a model."""
        layers, period = SHAPES[model].num_layers, self.cycles * (k + 1)
        low, high = (0, layers - 1) if self.is_of_all else default_range(layers)
        position = k + 1 if self.by_position else None
        return Schedule(period, layers, dropped_layers(low, high, drop_ratio), "state", refresh_position=position)


# The published code at k 3 takes a LoRA step where `gen % 8 != 0` and `position % 4 != 0`. The last reading has its
# schedule: of 16 tokens 6 are full, for three prompts in four; for the others, of 4n + 1 tokens, 4 are, as by the
# second. The third is what it does only for a caller that passes `lora_drop_active=True`.
READINGS = (
    Reading("p of layers 3 to L-2, a full step every k + 1", False, 1),
    Reading("p of all layers, a full step every k + 1", True, 1),
    Reading("p of all layers, a full step every 2 (k + 1)", True, 2),
    Reading("the same, and at positions that k + 1 divides (the published code)", True, 2, by_position=True),
)


def bound_of(model: str, drop_ratio: float, k: int, reading: Reading) -> float:
    """The bound of a setting of the paper on a model's shape, by a reading; weights only: see `cost.speed_bound`."""
    schedule = reading.schedule(model, drop_ratio, k)
    return speed_bound(SHAPES[model], schedule, corrections=Corrections(RANK))


def within_words() -> str:
    """How many of the table's rows lie within the bound and the KV formula, by each reading."""
    parts = []
    for at, reading in enumerate(READINGS):
        speeds = sum(row.speedup <= row.bounds[at] for row in ROWS)
        savings = sum(row.kv_saved <= row.kv_limits[at] for row in ROWS)
        parts.append(f"{reading.label}: {speeds} by speed, {savings} by K/V")
    return f"Rows of {len(ROWS)} that lie within what is computed here. {'; '.join(parts)}."


def in_safe_zone(drop_ratio: float, period: int) -> bool:
    """Whether the paper calls these settings safe, for its models and its trained adapters."""
    return drop_ratio <= SAFE_DROP_RATIO and period - 1 <= SAFE_K
