"""The corrections of a model's layers as decoding needs them: tensors alone, no folder and no model.

They act at LoRA steps only; at full steps the frozen weights run alone. A bank may have a screened head too.

Shapes: D hidden size, r rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from lora_drop.decode.head import ScreenedHead


@dataclass
class Correction:
    """Corrections d = (alpha / r) * B (A h) and gates g by layer.

    Args:
        a: layer -> A, [r, D].
        b: layer -> B, [D, r].
        gate: layer -> g, [D]; for the rule `residual` only.
        alpha: numerator of the scale (`lora_alpha`).
        head: the screened head, or None.
    """

    a: dict[int, Tensor]
    b: dict[int, Tensor]
    gate: dict[int, Tensor]
    alpha: float
    head: ScreenedHead | None = field(default=None, kw_only=True)

    @property
    def rank(self) -> int:
        """r, the same in every layer; 0 without layers."""
        return next((a.shape[0] for a in self.a.values()), 0)

    @property
    def scale(self) -> float:
        """Factor of the correction, alpha / r."""
        return self.alpha / self.rank

    @property
    def layers(self) -> list[int]:
        """Layers that have a correction, ascending."""
        return sorted(self.a)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Copy to a device and a dtype."""
        changes: dict[str, Any] = self.mapped(lambda tensor: tensor.to(device, dtype))
        if self.head is not None:
            changes["head"] = self.head.to(device, dtype)
        return dataclasses.replace(self, **changes)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Apply a function to all tensors but the head's; returns fields for `dataclasses.replace`."""
        fields = {"a": self.a, "b": self.b, "gate": self.gate}
        return {name: {i: change(tensor) for i, tensor in value.items()} for name, value in fields.items()}

    def only(self, corrections: bool, head: bool) -> Self:
        """Copy with the corrections, the screened head, both or none."""
        none: dict[str, Any] = {} if corrections else {"a": {}, "b": {}, "gate": {}}
        return dataclasses.replace(self, **none, head=self.head if head else None)


def correct(bank: Correction | None, layer: int, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Correction d (..., D) and gate (D,) of a skipped layer with input h (..., D); both None if the bank has none."""
    if bank is None or layer not in bank.a:
        return None, None
    return low_rank(h, bank.a[layer], bank.b[layer], bank.scale), bank.gate[layer]


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * B (A x), (..., N), for x (..., K), A (r, K) and B (N, r)."""
    y = (x @ a.T) @ b.T
    return y if scale == 1.0 else y * scale
