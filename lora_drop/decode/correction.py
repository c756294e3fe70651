"""The low-rank corrections of the skipped layers, as decoding needs them: tensors alone, no folder and no model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class Correction:
    """d = (alpha / r) * B (A h) and gates g, by layer.

    Args:
        a: layer -> A, [r, D].
        b: layer -> B, [D, r].
        gate: layer -> g, [D]; read by the `residual` rule only.
        alpha: the scale's numerator (`lora_alpha`).
    """

    a: dict[int, Tensor]
    b: dict[int, Tensor]
    gate: dict[int, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """r, the same in every layer; 0 without layers."""
        return next((a.shape[0] for a in self.a.values()), 0)

    @property
    def layers(self) -> list[int]:
        """The layers that have a correction, ascending."""
        return sorted(self.a)

    def correction(self, layer: int, h: Tensor) -> Tensor:
        """d for a layer's input h (B, D) -> (B, D)."""
        return (h @ self.a[layer].T) @ self.b[layer].T * (self.alpha / self.rank)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on a device, in a dtype."""
        moved: dict[str, Any] = {
            name: {i: t.to(device, dtype) for i, t in getattr(self, name).items()} for name in ("a", "b", "gate")
        }
        return dataclasses.replace(self, **moved)
