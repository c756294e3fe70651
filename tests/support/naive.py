"""LoRA-Drop written down a second time, as plainly as the formulas: no cache, no batching, token by token.

For each layer it keeps the inputs of the tokens whose keys exist, and recomputes all keys and values from them at
every step. The decoder is compared with this.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotate(x: Tensor, position: int, rotary) -> Tensor:
    """Rotary embedding of (n, hs) at one position, by the pairs (j, j + hs/2)."""
    half = x.shape[-1] // 2
    angle = position * rotary.inv_freq
    cos, sin = angle.cos() * rotary.attention_scaling, angle.sin() * rotary.attention_scaling
    one, two = x[:, :half], x[:, half:]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def heads(x: Tensor, size: int, norm=None) -> Tensor:
    x = x.view(-1, size)
    return norm(x) if norm is not None else x


def attend(layer, rotary, h: Tensor, position: int, inputs: list[tuple[int, Tensor]]) -> Tensor:
    """Attention output (D,) of one token over the tokens in `inputs` (itself included)."""
    attention = layer.self_attn
    size = attention.head_dim
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    q = rotate(heads(attention.q_proj(layer.input_layernorm(h)), size, q_norm), position, rotary)
    keys, values = [], []
    for where, x in inputs:
        x = layer.input_layernorm(x)
        keys.append(rotate(heads(attention.k_proj(x), size, k_norm), where, rotary))
        values.append(heads(attention.v_proj(x), size))
    k, v = torch.stack(keys, 1), torch.stack(values, 1)  # (n_kv, T, hs)
    share = q.shape[0] // k.shape[0]
    out = []
    for head in range(q.shape[0]):
        scores = (k[head // share] @ q[head]) / math.sqrt(size)
        out.append(scores.softmax(-1) @ v[head // share])
    return attention.o_proj(torch.cat(out))


@torch.no_grad()
def naive_logits(
    model, tokens: list[int], prompt_tokens: int, schedule, bank=None, refreshes=None, norms: dict | None = None
) -> Tensor:
    """Logits after each token from the prompt's last on: (1 + G, V).

    `refreshes` are the full decode steps, every `period`-th unless given. `norms` receives, by step, the mean over the
    corrected layers of ||d|| / ||what the rule reuses||.
    """
    body = model.model
    inputs: list[list[tuple[int, Tensor]]] = [[] for _ in body.layers]
    previous: dict[int, Tensor] = {}  # h[t-1][i+1] (or u)
    anchor_in: dict[int, Tensor] = {}
    anchor_out: dict[int, Tensor] = {}
    logits = []
    for position, token in enumerate(tokens):
        step = max(0, position - prompt_tokens + 1)
        lora = step > 0 and schedule.period > 1 and step % schedule.period != 0
        if refreshes is not None:
            lora = step > 0 and step not in refreshes
        ratios = []
        h = body.embed_tokens.weight[token]
        for i, layer in enumerate(body.layers):
            dropped = i in schedule.dropped
            if not (lora and dropped) or schedule.kv == "write":
                inputs[i].append((position, h))
            if lora and dropped:
                scale = bank.alpha / bank.rank if bank else 0
                d = scale * (bank.b[i] @ (bank.a[i] @ h)) if bank else 0
                reused = {
                    "state": previous[i],
                    "anchor": anchor_out[i],
                    "residual": anchor_out[i] - anchor_in[i],
                    "skip": h,
                }[schedule.reuse]
                if bank:
                    ratios.append(float(d.norm() / reused.norm()))
                if schedule.reuse == "state":
                    u = previous[i] + d
                elif schedule.reuse == "anchor":
                    u = anchor_out[i] + d
                elif schedule.reuse == "residual":
                    u = h + (bank.gate[i] if bank else 1) * (anchor_out[i] - anchor_in[i]) + d
                else:
                    u = h + d
            else:
                u = h + attend(layer, body.rotary_emb, h, position, inputs[i])
                if schedule.part == "block":
                    u = u + layer.mlp(layer.post_attention_layernorm(u))
                anchor_in[i], anchor_out[i] = h, u
            previous[i] = u
            h = u if schedule.part == "block" else u + layer.mlp(layer.post_attention_layernorm(u))
        if ratios and norms is not None:
            norms[step] = sum(ratios) / len(ratios)
        if step > 0 or position == prompt_tokens - 1:
            logits.append(body.norm(h) @ model.get_output_embeddings().weight.T)
    return torch.stack(logits)
