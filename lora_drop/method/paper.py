"""The paper's figures (LoRA-Drop, arXiv 2601.02569), as data. They appear beside our measurements, never as ours.

The table is second-hand, from a summary of the paper: other models, trained adapters of rank 16, accuracy averaged
over tasks. No tensors, so that figures can use it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import Corrections, ModelShape, kv_saved, speed_bound
from lora_drop.method.schedule import Schedule

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
    def schedule(self) -> Schedule:
        """The row's schedule on its model, with the paper's rule and range."""
        config = LoraDropConfig(period=self.period, drop_ratio=self.drop_ratio, reuse="state")
        return config.schedule_for(SHAPES[self.model].num_layers)

    @property
    def bound(self) -> float:
        """The bound of the row's schedule on its model's shape, weights only: see `cost.speed_bound`."""
        return speed_bound(SHAPES[self.model], self.schedule, corrections=Corrections(RANK))

    @property
    def kv_limit(self) -> float:
        """Share of KV bytes saved by the exact formula, without a prompt: the most of any run of whole periods."""
        return kv_saved(SHAPES[self.model], self.schedule, prompt_tokens=0, steps=self.period)


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


def in_safe_zone(drop_ratio: float, period: int) -> bool:
    """Whether the paper calls these settings safe, for its models and its trained adapters."""
    return drop_ratio <= SAFE_DROP_RATIO and period - 1 <= SAFE_K
