"""A prompt, a forced continuation and random corrections with all their parts, for the tests of the decoders."""

import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode import PROJECTIONS, screen

PROMPT = [5, 99, 17, 42, 200]
TARGET = [7, 7, 130, 61, 255, 3, 88, 19, 54, 20, 11]


def random_bank(loaded, reuse, part="block", layers=None, seed=1):
    torch.manual_seed(seed)
    bank = AdapterBank.new(layers or list(range(1, loaded.num_layers)), loaded.shape.hidden_size, 4, 8.0)
    bank.reuse, bank.part = reuse, part
    for i in bank.layers:
        bank.b[i] = 0.3 * torch.randn_like(bank.b[i])
        bank.gate[i] = torch.rand_like(bank.gate[i])
    return bank


def random_parts(bank, loaded, width=6, rank=3, best=40, seed=2):
    """Give a bank, such as `random_bank`'s, random parts: `mlp` in its layers, `kept` in all, and a screened head."""
    torch.manual_seed(seed)
    model, size = loaded.model, loaded.shape.hidden_size
    bank.mlp = {i: (torch.randn(2 * width, size) * size**-0.5, 0.2 * torch.randn(size, width)) for i in bank.layers}
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        groups = (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        )
        bank.kept[i] = {}
        for name, parts in zip(PROJECTIONS, groups, strict=True):
            k, n = parts[0].in_features, sum(part.out_features for part in parts)
            bank.kept[i][name] = torch.randn(rank, k) * k**-0.5, 0.1 * torch.randn(n, rank)
    weight = model.get_output_embeddings().weight.detach().float()
    bank.head = screen(weight, torch.eye(size), size // 4, best)
    return bank
