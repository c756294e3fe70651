"""The screened head of a model, from text that it reads: see `decode.head`."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_drop.decode.head import ScreenedHead, screen
from lora_drop.models.load import LoadedModel

WINDOWS = 64  # evenly of the whole text, as a preview knows what it has seen: a language too; more change little
BATCH = 8  # of them at a time


@torch.no_grad()
def screened_head(loaded: LoadedModel, windows: Tensor, rank: int, best: int) -> ScreenedHead:
    """The preview of a model's head, best for the normed last states of windows (N, T) of tokens.

    Args:
        rank, best: R and N of `decode.head`; both at most what the head has.
    """
    head = loaded.model.get_output_embeddings().weight
    moment = torch.zeros(head.shape[1], head.shape[1], dtype=torch.float64)
    windows = windows[:: -(-len(windows) // WINDOWS)]
    for batch in windows.split(BATCH):
        states = loaded.model.model(batch.to(loaded.device)).last_hidden_state.flatten(0, 1).float()
        moment += (states.T @ states).double().cpu()
    moment /= windows.numel()
    return screen(head.float().cpu(), moment, min(rank, len(moment)), min(best, len(head)))
