"""What training moves: a bank's tensors, each in units in which one learning rate suits them all.

A is learned as `A = A' @ white`, B as `B = reach * B'` (`fit.Scales`): in the stream's own units a few outlier
channels would set the pace. The parts' tensors are in units of the matrices that they add to (`parts.units`).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.training.fit import Scales


def parameters_of(bank: AdapterBank, scales: dict[int, Scales], units: list[float]) -> list[Tensor]:
    """The parameters that make a bank: all A, all B, all gates, then the parts, as `Correction.mapped` has them."""
    tensors: list[Tensor] = []
    bank.mapped(lambda t: tensors.append(t) or t)  # type: ignore[func-returns-value]
    parts = tensors[3 * len(bank.a) :]
    parameters = [
        *(torch.linalg.solve(scales[i].white, a, left=False) for i, a in bank.a.items()),
        *(b / scales[i].reach[:, None] for i, b in bank.b.items()),
        *(gate.clone() for gate in bank.gate.values()),
        *(t / unit for t, unit in zip(parts, units, strict=True)),
    ]
    return [tensor.requires_grad_() for tensor in parameters]


def bank_of(parameters: list[Tensor], like: AdapterBank, scales: dict[int, Scales], units: list[float]) -> AdapterBank:
    """The bank that parameters make, with all else of `like`; gradients of its tensors reach them."""
    layers, n = list(like.a), len(like.a)
    a, b, gate, parts = parameters[:n], parameters[n : 2 * n], parameters[2 * n : 3 * n], parameters[3 * n :]
    tensors = iter(
        [
            *(t @ scales[i].white for i, t in zip(layers, a, strict=True)),
            *(t * scales[i].reach[:, None] for i, t in zip(layers, b, strict=True)),
            *gate,
            *(t * unit for t, unit in zip(parts, units, strict=True)),
        ]
    )
    return dataclasses.replace(like, **like.mapped(lambda _: next(tensors)))
