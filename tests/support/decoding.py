"""A prompt, a forced continuation and random corrections, for the tests of the decoders."""

import torch

from lora_drop.adapters.bank import AdapterBank

PROMPT = [5, 99, 17, 42, 200]
TARGET = [7, 7, 130, 61, 255, 3, 88, 19, 54, 20, 11]


def random_bank(loaded, reuse="residual", part="block", layers=None, seed=1):
    """Corrections of rank 4 in some layers (all but the first by default), large enough to change the text."""
    torch.manual_seed(seed)
    bank = AdapterBank.new(layers or list(range(1, loaded.num_layers)), loaded.shape.hidden_size, 4, 8.0)
    bank.reuse, bank.part = reuse, part
    for i in bank.layers:
        bank.b[i] = 0.3 * torch.randn_like(bank.b[i])
        bank.gate[i] = torch.rand_like(bank.gate[i])
    return bank
