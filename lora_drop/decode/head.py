"""The screened head: logits at a LoRA step without reading the whole head.

The head is the largest matrix of a small model. A low-rank preview of all logits, its codes in int8, finds the
likeliest tokens; their logits are then computed exactly, and the others keep the preview's value. The preview is the
best one of its rank on the states that the model really has: an SVD of the head weighted by their second moment.

Shapes: D hidden size, V vocabulary, R rank of the preview, N tokens whose logits are exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-4  # of a channel's mean power: what the calibration text hardly shows is not amplified


@dataclass(frozen=True)
class ScreenedHead:
    """The preview of a head: logits of a normed state h are about `scale * (codes @ (project @ h))`.

    Args:
        project: (R, D).
        codes: (V, R) int8.
        scale: (V,).
        best: N.
    """

    project: Tensor
    codes: Tensor
    scale: Tensor
    best: int

    @property
    def rank(self) -> int:
        """R."""
        return self.project.shape[0]

    def preview(self, h: Tensor) -> Tensor:
        """Approximate logits (B, V) in float32 of normed states (B, D)."""
        low = h.float() @ self.project.float().T
        return (low @ self.codes.float().T) * self.scale.float()

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """Logits (B, V) in float32 of normed states h (B, D): those of the N best by the head (V, D), exactly."""
        found = self.preview(h)
        best = found.topk(self.best, -1).indices  # (B, N)
        exact = torch.einsum("bnd,bd->bn", head[best].float(), h.float())
        return found.scatter_(-1, best, exact)

    def to(self, device: torch.device, dtype: torch.dtype) -> ScreenedHead:
        """A copy on a device, in a dtype; the codes stay int8."""
        return dataclasses.replace(
            self,
            project=self.project.to(device, dtype),
            codes=self.codes.to(device),
            scale=self.scale.to(device, torch.float32),
        )


@torch.no_grad()
def screen(head: Tensor, moment: Tensor, rank: int, best: int) -> ScreenedHead:
    """The preview of a head (V, D) for states with the second moment E[h h^T] (D, D)."""
    moment = moment.double()
    moment = moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    back = (vectors / values.clamp_min(1e-30).sqrt()) @ vectors.T
    # The right singular vectors of head @ root, from its Gram matrix: V is large, D is not.
    weighted = head.double() @ root
    _, right = torch.linalg.eigh(weighted.T @ weighted)
    right = right[:, -rank:].flip(1)  # (D, R), the strongest first
    rows = weighted @ right  # (V, R)
    scale = rows.abs().amax(1).clamp_min(1e-12) / 127
    codes = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return ScreenedHead((right.T @ back).float(), codes, scale.float(), best)
