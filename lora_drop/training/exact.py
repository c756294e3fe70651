"""LoRA-Drop with exact refreshes (`repair`, kv `write`) over a whole text in one pass, with gradients.

After a repair every cache and every anchor is the full model's. So one pass of the full model gives all that a LoRA
step finds there, and the student's own pass is over the LoRA positions alone: it starts with their exact states at the
first skipped layer, and a row sees the full model's K/V up to its anchor and the student's own after it. There is no
recurrence over refreshes. The logits equal those of step-by-step decoding; a test holds them to it.

Shapes: B batch, T tokens, N LoRA positions, D hidden size, hs head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import Correction
from lora_drop.method.schedule import Schedule
from lora_drop.training.student import Layout


@dataclass
class Full:
    """What the full model has of a text.

    Attributes:
        entered: (B, T, D) the input of the first skipped layer.
        kv: K/V of the layers that run, from the first skipped layer on.
        anchors: skipped layer -> what the reuse rule takes of a full step, (B, T, D); no entry with `skip`.
        states: (B, T, D) the normed last states.
    """

    entered: Tensor
    kv: KVCache
    anchors: dict[int, Tensor] = field(default_factory=dict)
    states: Tensor = field(init=False)


@torch.no_grad()
def read_full(model: PreTrainedModel, tokens: Tensor, schedule: Schedule) -> Full:
    """The full model over tokens (B, T)."""
    body, skipped = model.model, schedule.dropped_set
    h = body.embed_tokens(tokens)
    rope = body.rotary_emb(h, position_ids=torch.arange(tokens.shape[1], device=h.device)[None])
    full = Full(h, KVCache(len(body.layers)))
    for i, layer in enumerate(body.layers):
        if i == schedule.dropped[0]:
            full.entered = h
        wanted = i > schedule.dropped[0] and i not in skipped
        attention, _ = layer.self_attn(
            layer.input_layernorm(h),
            position_embeddings=rope,
            attention_mask=None,  # causal
            cache=full.kv if wanted else None,
        )
        u = h + attention
        out = u + layer.mlp(layer.post_attention_layernorm(u))
        if i in skipped and schedule.reuse != "skip":
            reached = u if schedule.part == "attention" else out
            full.anchors[i] = reached - h if schedule.reuse == "residual" else reached
        h = out
    full.states = body.norm(h)
    return full


@dataclass(frozen=True)
class _Rows:
    """Where the student's rows stand in the text.

    Attributes:
        layout: the positions of the text.
        anchor: (N,) the position of each row's anchor.
        rope: rotary cosines and sines of the rows, each (1, N, hs).
        visible: (N, T + N) bool: the full model's keys up to the anchor, then the rows' own of the same window.
    """

    layout: Layout
    anchor: Tensor
    rope: tuple[Tensor, Tensor]
    visible: Tensor

    @classmethod
    def of(cls, layout: Layout, rotary: Any, like: Tensor) -> _Rows:
        """For a layout; `like` (B, T, D) has the device and the number type."""
        anchor = layout.order[layout.anchor]
        number = torch.arange(len(anchor), device=anchor.device)
        theirs = torch.arange(len(layout.order), device=anchor.device) <= anchor[:, None]
        own = (layout.start[:, None] <= number) & (number <= number[:, None])
        rope = rotary(like, position_ids=layout.order[None, layout.full :])
        return cls(layout, anchor, rope, torch.cat((theirs, own), 1))

    def window_sum(self, d: Tensor) -> Tensor:
        """Each row's sum of d (B, N, D) over its window up to itself."""
        total = F.pad(d.float().cumsum(1), (0, 0, 1, 0))  # (B, N + 1, D), zero before the first
        return (total[:, 1:] - total[:, self.layout.start]).to(d.dtype)


def exact_states(
    model: PreTrainedModel,
    tokens: Tensor,
    prompt_tokens: int,
    schedule: Schedule,
    bank: Correction | None,
    measure: Callable[[Tensor, Tensor], None] = lambda d, cached: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The normed last states of LoRA steps and the full model's at the same positions, which the head makes logits of.

    Args:
        tokens: (B, T), without padding.
        prompt_tokens: P, the same for all texts: 1 to T - 1.
        schedule: with `refresh` repair, kv `write` and a skipped layer at least.
        bank: the corrections, on the model's device; gradients reach its tensors.
        measure: gets each correction and what its rule reuses, (B, N, D) both, as `Refresher.measure` does.

    Returns:
        The student's and the full model's, (B, N, D), and the LoRA positions (T,) bool.
    """
    layout = Layout.of(prompt_tokens, tokens.shape[1], schedule.period, tokens.device)
    full = read_full(model, tokens, schedule)
    rows = _Rows.of(layout, model.model.rotary_emb, full.entered)
    h = full.entered[:, layout.lora]
    for i in range(schedule.dropped[0], len(model.model.layers)):
        layer = model.model.layers[i]
        if i in schedule.dropped_set:
            h = _skip(i, layer, h, rows, full, schedule, bank, measure)
        else:
            h = _run(i, layer, h, rows, full, schedule, bank)
    return model.model.norm(h), full.states[:, layout.lora], layout.lora


def _skip(
    i: int,
    layer: Any,
    h: Tensor,
    rows: _Rows,
    full: Full,
    schedule: Schedule,
    bank: Correction | None,
    measure: Callable[[Tensor, Tensor], None],
) -> Tensor:
    """A skipped layer: the reuse rule at the rows h (B, N, D)."""
    own = bank if bank is not None and i in bank.a else None
    d: Any = 0.0
    if own is not None:
        d = own.correction(i, h)
        if i in own.mlp:
            d = d + own.bottleneck(i, layer.post_attention_layernorm(h))
        if schedule.reuse == "state":  # each step adds its correction to the one before
            d = rows.window_sum(d)
        measure(d, h if schedule.reuse == "skip" else full.anchors[i][:, rows.anchor])
    if schedule.reuse == "skip":
        u = h + d
    elif schedule.reuse == "residual":
        added = full.anchors[i][:, rows.anchor]
        u = h + (added if own is None else own.gate[i] * added) + d
    else:
        u = full.anchors[i][:, rows.anchor] + d
    return u if schedule.part == "block" else u + layer.mlp(layer.post_attention_layernorm(u))


def _run(
    i: int, layer: Any, h: Tensor, rows: _Rows, full: Full, schedule: Schedule, bank: Correction | None
) -> Tensor:
    """A layer that runs, with its `kept` part, at the rows h (B, N, D)."""

    def adapted(name: str, x: Tensor, *projections: Any) -> Tensor:
        y = torch.cat([projection(x) for projection in projections], -1)
        return y if bank is None else bank.adapted(i, name, x, y)

    attention = layer.self_attn
    key, value = full.kv.store(i).narrow(3, 0, full.kv.lengths[i]).unbind(0)
    qkv = adapted("qkv", layer.input_layernorm(h), attention.q_proj, attention.k_proj, attention.v_proj)
    heads = qkv.unflatten(-1, (-1, attention.head_dim))  # (B, N, n_heads + 2 n_kv, hs)
    count = key.shape[1]
    q, k, v = heads.split((heads.shape[2] - 2 * count, count, count), 2)
    if hasattr(attention, "q_norm"):  # Qwen3
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *rows.rope)
    found = F.scaled_dot_product_attention(
        q,
        torch.cat((key, k), 2),
        torch.cat((value, v.transpose(1, 2)), 2),
        attn_mask=rows.visible,
        scale=attention.scaling,
        enable_gqa=True,
    )
    u = h + adapted("out", found.transpose(1, 2).flatten(2), attention.o_proj)
    gate, up = adapted("gate_up", layer.post_attention_layernorm(u), layer.mlp.gate_proj, layer.mlp.up_proj).chunk(
        2, -1
    )
    return u + adapted("down", layer.mlp.act_fn(gate) * up, layer.mlp.down_proj)
