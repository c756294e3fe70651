"""Random corrections with all their parts, for the tests of the decoders."""

import torch

from lora_drop.decode.head import screen
from tests.support.decoding import random_bank


def full_bank(loaded, reuse, part="block", layers=None, dtype=torch.float32, width=20, rank=30, best=40):
    """A bank with `linear`, `mlp`, `kept` and `head`."""
    bank = random_bank(loaded, reuse, part, layers)
    hidden = loaded.shape.hidden_size
    for i in bank.layers:
        bank.mlp[i] = 0.2 * torch.randn(2 * width, hidden), 0.2 * torch.randn(hidden, width)
    for i, layer in enumerate(loaded.model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        sizes = {
            "qkv": (sum(p.out_features for p in (attention.q_proj, attention.k_proj, attention.v_proj)), hidden),
            "out": tuple(attention.o_proj.weight.shape),
            "gate_up": (2 * mlp.gate_proj.out_features, hidden),
            "down": tuple(mlp.down_proj.weight.shape),
        }
        names = list(sizes)[: 2 + i % 3]  # not every layer has them all
        bank.kept[i] = {name: (0.1 * torch.randn(3, sizes[name][1]), torch.randn(sizes[name][0], 3)) for name in names}
    weight = loaded.model.get_output_embeddings().weight.float()
    bank.head = screen(weight, torch.eye(hidden), min(rank, hidden), best)
    return bank.to(torch.device("cpu"), dtype)
