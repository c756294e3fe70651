"""What training moves: the parameters of a bank; and the screened head.

Shapes: D hidden size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.head import ScreenedHead, screen
from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel
from lora_drop.training.fit import Scales

HEAD_WINDOWS, HEAD_BATCH = 64, 8  # windows that a preview is made from, and how many are run at once


def continued(fresh: AdapterBank, bank: AdapterBank, name: str, loaded: LoadedModel) -> AdapterBank:
    """Make a run's starting bank from a trained one: float32, on the model's device.

    Args:
        fresh: what the run would start from otherwise.
        name: the bank's, for messages.

    Raises:
        LoraDropError: the bank is of another model, rule, rank or set of layers.
    """
    bank.check(loaded, name, fresh.reuse, fresh.part)
    for field in ("rank", "layers"):
        mine, theirs = getattr(fresh, field), getattr(bank, field)
        if mine != theirs:
            raise LoraDropError(f"adapters {name} have {field} {theirs}, this run has {mine}: use the same.")
    # Only the product alpha / r B A counts, so their alpha may differ.
    b = {i: t.float() * (bank.alpha / fresh.alpha) for i, t in bank.b.items()}
    return dataclasses.replace(fresh, a=bank.a, b=b, gate=bank.gate).to(loaded.device, torch.float32)


def parameters_of(bank: AdapterBank, scales: dict[int, Scales]) -> list[Tensor]:
    """Parameters of a bank, each in units in which one learning rate suits them all.

    A is learned as `A = A' @ white` and B as `B = reach * B'` (`fit.Scales`): in the stream's units a few outlier
    channels would set the pace.

    Returns:
        All A, all B, all gates.
    """
    parameters = [
        *(torch.linalg.solve(scales[i].white, a, left=False) for i, a in bank.a.items()),
        *(b / scales[i].reach[:, None] for i, b in bank.b.items()),
        *(gate.clone() for gate in bank.gate.values()),
    ]
    return [tensor.requires_grad_() for tensor in parameters]


def bank_of(parameters: list[Tensor], like: AdapterBank, scales: dict[int, Scales]) -> AdapterBank:
    """Make the bank of parameters, with all else from `like`; gradients of its tensors reach them."""
    n = len(like.a)
    a, b, gate = (dict(zip(like.a, parameters[at : at + n], strict=True)) for at in (0, n, 2 * n))
    return dataclasses.replace(
        like,
        a={i: t @ scales[i].white for i, t in a.items()},
        b={i: t * scales[i].reach[:, None] for i, t in b.items()},
        gate=gate,
    )


@torch.no_grad()
def screened_head(loaded: LoadedModel, windows: Tensor, rank: int, best: int) -> ScreenedHead:
    """Make the preview of a model's head that is best for its normed last states on text; see `decode.head`.

    Args:
        windows: (N, T) tokens, of which evenly spread ones are read: the preview suits the languages and kinds of text
            that it was made from.
        rank: R of `decode.head`; at most what the head has.
        best: N of it, the same.
    """
    head = loaded.model.get_output_embeddings().weight
    moment = torch.zeros(head.shape[1], head.shape[1], dtype=torch.float64)
    windows = windows[:: -(-len(windows) // HEAD_WINDOWS)]
    for batch in windows.split(HEAD_BATCH):
        states = loaded.model.model(batch.to(loaded.device)).last_hidden_state.flatten(0, 1).float()
        moment += (states.T @ states).double().cpu()
    moment /= windows.numel()
    return screen(head, moment, min(rank, len(moment)), min(best, len(head)))
