"""Fused projections for the static and the native decoder, and the models that they support."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_supported(model: PreTrainedModel) -> bool:
    """True if `StaticDecoder` and `NativeDecoder` compute the same as the model's own modules.

    Rotary embeddings must depend on the position alone (some scalings depend on the text's length), the activation
    must be SiLU, and the MLP must have no biases.
    """
    config = model.config
    return (
        model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
    )


def fused(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of projections as one; their own weights become views of the one matrix."""
    if len(parts) == 1:
        return parts[0].weight, parts[0].bias
    # Inference tensors cannot be trained: a caller in inference mode must not turn normal weights into them.
    with torch.inference_mode(parts[0].weight.is_inference()), torch.no_grad():
        weight = torch.cat([part.weight for part in parts])
    start = 0
    for part in parts:
        part.weight.data = weight[start : start + part.out_features]
        start += part.out_features
    return weight, None if parts[0].bias is None else torch.cat([part.bias for part in parts])


# `Any`: to a type checker each attribute of a transformers module is a tensor or a module.
def qk_norms(attention: Any) -> Tensor | None:
    """Qwen3's norms of query and key heads, one row a head, (nh + nkv, hs); None for other models."""
    if not hasattr(attention, "q_norm"):
        return None
    heads = [proj.weight.shape[0] // attention.head_dim for proj in (attention.q_proj, attention.k_proj)]
    norms = (attention.q_norm.weight, attention.k_norm.weight)
    return torch.cat([norm.expand(count, -1) for norm, count in zip(norms, heads, strict=True)])
