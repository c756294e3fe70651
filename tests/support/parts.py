"""Random corrections with a screened head, for the tests of the decoders."""

import torch

from lora_drop.decode.head import screen
from tests.support.decoding import random_bank


def full_bank(loaded, reuse, part="block", layers=None, dtype=torch.float32, rank=30, best=40):
    """A bank with corrections and a screened head."""
    bank = random_bank(loaded, reuse, part, layers)
    weight = loaded.model.get_output_embeddings().weight.float()
    bank.head = screen(weight, torch.eye(weight.shape[1]), min(rank, weight.shape[1]), best)
    return bank.to(torch.device("cpu"), dtype)
