"""The corrections of a model's layers as decoding needs them: tensors alone, no folder and no model.

A correction has up to three parts, `linear` (the paper's), `mlp` and `kept`; a bank may have a screened head too. All
act at LoRA steps only; at full steps the frozen weights run alone.

Shapes: D hidden size, r rank, b width of the bottleneck, r_k rank of the part `kept`, K and N a projection's input and
output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_drop.decode.head import ScreenedHead

Pair = tuple[Tensor, Tensor]
Norm = Callable[[Tensor], Tensor] | None
PROJECTIONS = ("qkv", "out", "gate_up", "down")  # of a layer; those with one input are together


@dataclass
class Correction:
    """Corrections d = (alpha / r) * B (A h) and gates g by layer, and the parts beyond the paper's.

    Args:
        a: layer -> A, [r, D].
        b: layer -> B, [D, r].
        gate: layer -> g, [D]; for the rule `residual` only.
        alpha: numerator of the scale (`lora_alpha`).
        mlp: skipped layer -> a SwiGLU bottleneck that reads the layer's input after its MLP norm: gate and up [2b, D],
            and down [D, b]. Its output is added to d.
        kept: layer -> projection of `PROJECTIONS` -> (A [r_k, K], B [N, r_k]), added to a layer that runs. Used above
            the first skipped layer only.
        head: the screened head, or None.
    """

    a: dict[int, Tensor]
    b: dict[int, Tensor]
    gate: dict[int, Tensor]
    alpha: float
    mlp: dict[int, Pair] = field(default_factory=dict, kw_only=True)
    kept: dict[int, dict[str, Pair]] = field(default_factory=dict, kw_only=True)
    head: ScreenedHead | None = field(default=None, kw_only=True)

    @property
    def rank(self) -> int:
        """r, the same in every layer; 0 without layers."""
        return next((a.shape[0] for a in self.a.values()), 0)

    @property
    def scale(self) -> float:
        """Factor of the linear part, alpha / r."""
        return self.alpha / self.rank

    @property
    def mlp_width(self) -> int:
        """b, the same in every layer; 0 without that part."""
        return next((down.shape[1] for _, down in self.mlp.values()), 0)

    @property
    def kept_rank(self) -> int:
        """r_k, the same everywhere; 0 without that part."""
        return next((a.shape[0] for pairs in self.kept.values() for a, _ in pairs.values()), 0)

    @property
    def layers(self) -> list[int]:
        """Layers that have a correction, ascending."""
        return sorted(self.a)

    @property
    def parts(self) -> frozenset[str]:
        """Names of its parts: `linear`, `mlp`, `kept` and `head`, if it has them."""
        fields = {"linear": self.a, "mlp": self.mlp, "kept": self.kept, "head": self.head}
        return frozenset(name for name, value in fields.items() if value)

    def adapted(self, layer: int, projection: str, x: Tensor, y: Tensor) -> Tensor:
        """A projection y (..., N) of x (..., K) with its change from the part `kept`; y itself without one."""
        pair = self.kept.get(layer, {}).get(projection)
        return y if pair is None else y + low_rank(x, *pair)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Copy to a device and a dtype."""
        changes: dict[str, Any] = self.mapped(lambda tensor: tensor.to(device, dtype))
        if self.head is not None:
            changes["head"] = self.head.to(device, dtype)
        return dataclasses.replace(self, **changes)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Apply a function to the tensors of all parts but the head; returns fields for `dataclasses.replace`."""

        def each(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: each(inner) for key, inner in value.items()}
            return tuple(map(change, value)) if isinstance(value, tuple) else change(value)

        return {name: each(getattr(self, name)) for name in ("a", "b", "gate", "mlp", "kept")}

    def only(self, parts: frozenset[str]) -> Self:
        """Copy without the parts that are not among these."""
        empty: dict[str, dict[str, Any]] = {
            "linear": {"a": {}, "b": {}, "gate": {}},
            "mlp": {"mlp": {}},
            "kept": {"kept": {}},
            "head": {"head": None},
        }
        gone = {name: none for part, fields in empty.items() if part not in parts for name, none in fields.items()}
        return dataclasses.replace(self, **gone)


def correct(
    bank: Correction | None, layer: int, h: Tensor, normed: Norm = None
) -> tuple[Tensor | None, Tensor | None]:
    """Correction d (..., D) and gate (D,) of a skipped layer with input h (..., D); both None if the bank has none."""
    if bank is None or layer not in bank.a:
        return None, None
    linear = bank.a[layer], bank.b[layer], bank.scale
    return correction_of(h, linear, bank.mlp.get(layer), normed), bank.gate[layer]


def correction_of(h: Tensor, linear: tuple[Tensor, Tensor, float], mlp: Pair | None, normed: Norm) -> Tensor:
    """d, (..., D), of a skipped layer's input h (..., D).

    Args:
        linear: A (r, D), B (D, r) and their scale.
        mlp: the bottleneck's matrices, as in `Correction.mlp`; None without this part.
        normed: the layer's norm before its MLP, whose output the bottleneck reads; None leaves the bottleneck out.
    """
    d = low_rank(h, *linear)
    return d if mlp is None or normed is None else d + bottleneck(normed(h), *mlp)


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale * B (A x), (..., N), for x (..., K), A (r, K) and B (N, r)."""
    y = (x @ a.T) @ b.T
    return y if scale == 1.0 else y * scale


def bottleneck(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """A SwiGLU bottleneck (..., D) of x (..., D), with gate and up (2b, D) and down (D, b)."""
    gate, up = (x @ gate_up.T).chunk(2, -1)
    return (F.silu(gate) * up) @ down.T
