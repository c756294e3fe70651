"""What the static and the native decoder have in common: fused projections, and the models that they can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_supported(model: PreTrainedModel) -> bool:
    """Whether `StaticDecoder` and `NativeDecoder` compute what the model's own modules do.

    Rotary embeddings must be functions of the position alone (some scalings change with the length reached), the
    activation SiLU, and the MLP without biases.
    """
    config = model.config
    return (
        model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
    )


def fused(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the parts side by side. The parts' own weights become views of the one matrix."""
    if len(parts) == 1:
        return parts[0].weight, parts[0].bias
    # A caller in inference mode must leave a model that can learn, unless it was loaded in it.
    with torch.inference_mode(parts[0].weight.is_inference()), torch.no_grad():
        weight = torch.cat([part.weight for part in parts])
    start = 0
    for part in parts:
        part.weight.data = weight[start : start + part.out_features]
        start += part.out_features
    return weight, None if parts[0].bias is None else torch.cat([part.bias for part in parts])


# `Any`: to a type checker each attribute of a transformers module is a tensor or a module.
def qk_norms(attention: Any) -> Tensor | None:
    """Qwen3's norms of query and key heads, a row a head (nh + nkv, hs); None for the others."""
    if not hasattr(attention, "q_norm"):
        return None
    heads = [proj.weight.shape[0] // attention.head_dim for proj in (attention.q_proj, attention.k_proj)]
    norms = (attention.q_norm.weight, attention.k_norm.weight)
    return torch.cat([norm.expand(count, -1) for norm, count in zip(norms, heads, strict=True)])
