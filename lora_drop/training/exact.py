"""LoRA-Drop with refreshes that repair, over a whole text in one pass, with gradients.

After a repair with kv `write` every cache and every anchor is the full model's. So one pass of the full model gives
all that a LoRA step reads there, and the student's pass runs on the LoRA positions alone. It starts from their
exact states at the first skipped layer; a row sees the full model's K/V up to its anchor and the student's after
it. There is no recurrence over refreshes. With kv `skip` a skipped layer keeps the K/V of the prompt and of refreshes
alone: that pass is then masked, and no longer the full model. The logits equal those of step-by-step decoding; a test
compares them.

Shapes: B batch, T tokens, N LoRA positions, D hidden size, hs head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode import rules
from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.layer import Rope, attend, feed, heads
from lora_drop.method.schedule import Schedule
from lora_drop.training.student import Layout, skip


def exact_states(
    model: PreTrainedModel, tokens: Tensor, prompt_tokens: int, schedule: Schedule, bank: Correction | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed last states of LoRA steps, and those of the repairs at every position; the head makes them logits.

    Args:
        tokens: (B, T), without padding.
        prompt_tokens: P, the same for all texts: 1 to T - 1.
        schedule: with `refresh` repair and at least one skipped layer.
        bank: the corrections, on the model's device; gradients reach its tensors.

    Returns:
        The student's states (B, N, D), the repairs' (B, T, D), which are the full model's with kv `write`, and the
        LoRA positions (T,) bool.
    """
    body, layout, mask = model.model, Layout.of(prompt_tokens, tokens.shape[1], schedule.period, tokens.device), None
    if schedule.kv == "skip":  # the window of a LoRA position ends with the refresh that repairs it
        window = (torch.arange(tokens.shape[1], device=tokens.device) - prompt_tokens) // schedule.period
        mask = (~layout.lora | (window == window[:, None])).tril()[None, None]
    text = _Text.read(body, tokens, layout, schedule, mask)
    h = text.first
    for i in range(schedule.first_skipped, len(body.layers)):
        if i in schedule.dropped_set:
            h = skip(i, body.layers[i], h, text.anchors.get(i), layout, schedule, bank)
        else:
            h = _run(i, body.layers[i], h, text)
    return body.norm(h), text.states, layout.lora


@dataclass(frozen=True)
class _Text:
    """The repairs' states of a text, as far as the student's rows (one for each LoRA position) read them.

    Attributes:
        first: (B, N, D) input of the first skipped layer at the rows.
        states: (B, T, D) normed last states.
        kv: K/V of all positions in the layers that run above the first skipped one.
        anchors: skipped layer -> anchor of each row, (B, N, D); empty with `skip`.
        rope: rotary cosines and sines of the rows, (1, N, hs) each.
        visible: (N, T + N) bool: where a row sees the repairs' keys (up to its anchor) and the rows' (since then).
    """

    first: Tensor
    states: Tensor
    kv: KVCache
    anchors: dict[int, Tensor]
    rope: Rope
    visible: Tensor

    @classmethod
    @torch.no_grad()
    def read(cls, body: Any, tokens: Tensor, layout: Layout, schedule: Schedule, mask: Tensor | None) -> _Text:
        """Run every layer, the skipped ones with a mask (1, 1, T, T) or None, over tokens (B, T)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        anchor = layout.order[layout.anchor]  # (N,) its position in the text
        row = torch.arange(len(anchor), device=tokens.device)
        since = (layout.start[:, None] <= row) & (row <= row[:, None])
        h = first = body.embed_tokens(tokens)
        rope, kv, anchors = body.rotary_emb(h, position_ids=positions[None]), KVCache(len(body.layers)), {}
        for i, layer in enumerate(body.layers):
            if i == schedule.first_skipped:
                first = h
            skipped = i in schedule.dropped_set
            cache = kv if i > schedule.first_skipped and not skipped else None
            u = attend(layer, h, rope, mask if skipped else None, cache)
            output = feed(layer, u)
            each = rules.anchor_of(schedule.reuse, h, rules.replaced(schedule.part, u, output)) if skipped else None
            if each is not None:
                anchors[i] = each[:, anchor]
            h = output
        return cls(
            first[:, layout.lora],
            body.norm(h),
            kv,
            anchors,
            body.rotary_emb(h, position_ids=layout.order[None, layout.full :]),
            torch.cat((positions <= anchor[:, None], since), 1),
        )


def _run(i: int, layer: Any, h: Tensor, text: _Text) -> Tensor:
    """A layer that runs, at the rows h (B, N, D)."""
    query, key, value = heads(layer, h, text.rope)
    keys, values = text.kv.filled(i)
    both = torch.cat((keys, key), 2), torch.cat((values, value), 2)
    mixed = F.scaled_dot_product_attention(query, *both, attn_mask=text.visible, enable_gqa=True)
    return feed(layer, h + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2)))
