"""The screened head: logits at a LoRA step without reading the whole head.

The head is the largest matrix of a small model. A low-rank preview of all logits, in codes of 4 bits, selects the most
likely tokens; their logits are then computed exactly, and the others keep the preview's value. The preview is the best
of its rank for the states that the model produces: an SVD of the head weighted by their second moment. Its columns are
then rotated at random, because they differ in size and 4 bits need numbers of one size. For the same bytes, 4 bits
with twice the rank miss fewer tokens than 8 bits (docs/training-log.md).

Shapes: D hidden size, V vocabulary, R rank of the preview, N tokens whose logits are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 32  # codes that share a scale: a block of Q4_0
LOWEST, HIGHEST = -8, 7  # codes of 4 bits
CODE_BYTES = 1 + 4 / GROUP  # of a code, with its share of a scale
TRIED = (-8, -7.5, -7, -6.5)  # codes to try for the largest number of a group
ROWS = 4096  # of a head at a time, in float64: all of 151,936 x 1,536 would take 1.9 GB a copy
RIDGE = 1e-4  # share of the mean power: directions that are rare in the calibration text are not amplified


@dataclass(frozen=True)
class ScreenedHead:
    """The preview of a head: the logits of a normed state h are about `rows() @ (project @ h)`.

    Args:
        project: (R, D).
        codes: (V, R) int8, each of 4 bits: -8 to 7; (0, R) before `coded`.
        scale: (V, R / 32, rounded up), one for 32 codes.
        best: N.
        lift: (D, R), by which `coded` makes the codes; None in a bank that holds them.
    """

    project: Tensor
    codes: Tensor
    scale: Tensor
    best: int
    lift: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.project.shape[0]

    @classmethod
    def unpacked(cls, project: Tensor, packed: Tensor, scale: Tensor, best: int) -> ScreenedHead:
        """Make one from codes as `packed` returns them. Raises ValueError if the tensors do not fit together."""
        if project.dim() != 2 or packed.dim() != 2 or packed.dtype != torch.uint8:
            raise ValueError("the screened head has tensors of another form")
        (rank, _), (tokens, width) = project.shape, packed.shape
        if width != (rank + 1) // 2:
            raise ValueError("the screened head has codes of another rank")
        if scale.shape != (tokens, (rank + GROUP - 1) // GROUP):
            raise ValueError("the screened head has scales for other codes")
        codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1)[:, :rank]  # (V, R)
        return cls(project, codes.to(torch.int8) + LOWEST, scale, best)

    @classmethod
    def without_codes(cls, project: Tensor, lift: Tensor, best: int) -> ScreenedHead:
        """Make one from its two matrices. Raises ValueError if they do not fit together."""
        if project.dim() != 2 or lift.shape != project.T.shape or not lift.is_floating_point():
            raise ValueError("the screened head has tensors of another form")
        rank = len(project)
        codes, scale = torch.empty(0, rank, dtype=torch.int8), torch.empty(0, -(-rank // GROUP))
        return cls(project, codes, scale, best, lift.float())

    def coded(self, head: Iterable[Tensor]) -> ScreenedHead:
        """Copy with the codes of a head, of which `head` gives some rows (rows, D) at a time."""
        assert self.lift is not None
        parts = [_in_four_bits(rows.cpu().float() @ self.lift) for rows in head]
        codes, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return dataclasses.replace(self, codes=codes, scale=scale)

    def packed(self) -> Tensor:
        """Codes (V, R / 2, rounded up) uint8, two in a byte, the first in its low bits."""
        codes = F.pad((self.codes - LOWEST).to(torch.uint8), (0, self.rank % 2))
        return codes[:, ::2] | codes[:, 1::2] << 4

    def rows(self) -> Tensor:
        """Matrix of the preview (V, R) in float32."""
        return self.codes * self.scale.float().repeat_interleave(GROUP, 1)[:, : self.rank]

    def preview(self, h: Tensor) -> Tensor:
        """Approximate logits (B, V) in float32 of normed states (B, D)."""
        return h.float() @ self.project.float().T @ self.rows().T

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """Logits (B, V) in float32 of normed states h (B, D), exact for the N best by the head (V, D)."""
        logits = self.preview(h)
        best = logits.topk(self.best, -1).indices  # (B, N)
        exact = torch.einsum("bnd,bd->bn", head[best].float(), h.float())
        return logits.scatter_(-1, best, exact)

    def to(self, device: torch.device, dtype: torch.dtype) -> ScreenedHead:
        """Copy to a device and a dtype; the codes stay int8."""
        project, codes = self.project.to(device, dtype), self.codes.to(device)
        return dataclasses.replace(self, project=project, codes=codes, scale=self.scale.to(device, torch.float32))


@torch.no_grad()
def screen(head: Tensor, moment: Tensor, rank: int, best: int) -> ScreenedHead:
    """Make the preview of a head (V, D) for states with the second moment E[h h^T] (D, D)."""
    moment = moment.double()
    moment = moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    back = (vectors / values.clamp_min(1e-30).sqrt()) @ vectors.T
    # Right singular vectors of head @ root, from its Gram matrix (D, D), as V is large.
    gram = torch.zeros_like(moment)
    for rows in head.split(ROWS):
        numbers = rows.cpu().double()
        gram += numbers.T @ numbers
    _, right = torch.linalg.eigh(root @ gram @ root)
    right = right[:, -rank:].flip(1)  # (D, R), the strongest first
    turn, _ = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    right = right @ turn
    preview = ScreenedHead.without_codes((right.T @ back).float(), root @ right, best)
    return preview.coded(head.split(ROWS))


def _in_four_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows (V, R) to codes (V, R) and scales, the best of a few for each group; see `ScreenedHead`."""
    groups = F.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))  # (V, R / 32, 32)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    tried = torch.stack([(largest / code).half().float() for code in TRIED])  # rounded as in GGUF blocks
    errors = (_codes(groups, tried) * tried - groups).square().sum(-1, keepdim=True)
    scale = tried.gather(0, errors.argmin(0, keepdim=True))[0]
    return _codes(groups, scale).to(torch.int8).flatten(1)[:, : rows.shape[1]].contiguous(), scale[..., 0]


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale).nan_to_num().round().clamp(LOWEST, HIGHEST)
