"""The parts of one layer of a transformers model, for the decoders and for training; and which models are supported.

Shapes: B batch, T tokens, D hidden size, nh heads, nkv K/V heads, hs head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Rope = tuple[Tensor, Tensor]  # cosines and sines, (1, T, hs) each


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


# `Any`: to a type checker each attribute of a transformers module is a tensor or a module.
def projections(layer: Any) -> dict[str, tuple[nn.Linear, ...]]:
    """A layer's matrices by name; those with one input are together."""
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
        "out": (attention.o_proj,),
        "gate_up": (mlp.gate_proj, mlp.up_proj),
        "down": (mlp.down_proj,),
    }


def fused(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of projections as one matrix; their own weights become views of it."""
    if len(parts) == 1:
        return parts[0].weight, parts[0].bias
    # Inference tensors cannot be trained: a caller in inference mode must not turn normal weights into them.
    with torch.inference_mode(parts[0].weight.is_inference()), torch.no_grad():
        weight = torch.cat([part.weight for part in parts])
    for part, rows in zip(parts, weight.split([part.out_features for part in parts]), strict=True):
        part.weight.data = rows
    return weight, None if parts[0].bias is None else torch.cat([part.bias for part in parts])


def qk_norms(attention: Any) -> Tensor | None:
    """Qwen3's norms of query and key heads, one row a head, (nh + nkv, hs); None for other models."""
    if not hasattr(attention, "q_norm"):
        return None
    heads = [proj.weight.shape[0] // attention.head_dim for proj in (attention.q_proj, attention.k_proj)]
    norms = (attention.q_norm.weight, attention.k_norm.weight)
    return torch.cat([norm.expand(count, -1) for norm, count in zip(norms, heads, strict=True)])


def causal_mask(tokens: int, past: int, device: torch.device) -> Tensor | None:
    """Mask (1, 1, T, past + T), True where one of T tokens sees a key.

    None without a past, where torch's causal mask will do, and for one token, which sees all.
    """
    if not past or tokens == 1:
        return None
    at = torch.arange(past + tokens, device=device)
    return (at <= at[past:, None])[None, None]


def attend(layer: Any, h: Tensor, rope: Rope, mask: Tensor | None = None, cache: Any = None) -> Tensor:
    """u = h + attention, (B, T, D).

    Args:
        mask: (1, 1, T, S) bool, True where a token sees a key; None is causal.
        cache: a `KVCache`, which takes the new K/V and gives all that it holds.
    """
    attention, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(h), position_embeddings=rope, attention_mask=mask, cache=cache
    )
    u: Tensor = h + attention
    return u


def feed(layer: Any, u: Tensor) -> Tensor:
    """u + MLP, (B, T, D)."""
    output: Tensor = u + layer.mlp(layer.post_attention_layernorm(u))
    return output


def heads(layer: Any, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries (B, nh, T, hs) and keys, and values (B, nkv, T, hs), of a layer's input (B, T, D)."""
    attention, x = layer.self_attn, layer.input_layernorm(h)
    qkv = torch.cat([project(x) for project in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
    split = qkv.unflatten(-1, (-1, attention.head_dim))  # (B, T, nh + 2 nkv, hs)
    kv_heads = attention.k_proj.out_features // attention.head_dim
    query, key, value = split.split((split.shape[2] - 2 * kv_heads, kv_heads, kv_heads), 2)
    if hasattr(attention, "q_norm"):  # Qwen3
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return rotate(query, rope), rotate(key, rope), value


def keys_values(layer: Any, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """The same without queries: rotated keys and values, (B, nkv, T, hs)."""
    attention, x = layer.self_attn, layer.input_layernorm(h)
    shape = (*x.shape[:-1], -1, attention.head_dim)
    key, value = attention.k_proj(x).view(shape), attention.v_proj(x).view(shape)
    if hasattr(attention, "k_norm"):
        key = attention.k_norm(key)
    return rotate(key.transpose(1, 2), rope), value.transpose(1, 2)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary position for (B, n, T, hs), in transformers' half-split order."""
    cos, sin = (part[:, None] for part in rope)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
