"""LoRA-Drop with exact refreshes (`repair`, kv `write`) over a whole text in one pass, with gradients.

After a repair every cache and every anchor is the full model's. So one pass of the full model gives all that a LoRA
step reads there, and the student's own pass runs on the LoRA positions alone. It starts from their exact states at the
first skipped layer; a row sees the full model's K/V up to its anchor and the student's own after it. There is no
recurrence over refreshes. The logits equal those of step-by-step decoding; a test compares them.

Shapes: B batch, T tokens, N LoRA positions, D hidden size, hs head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode import rules
from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import Correction, correct
from lora_drop.decode.layer import Rope, attend, feed, run_changed, unchanged
from lora_drop.method.schedule import Schedule
from lora_drop.training.student import Layout

Measure = Callable[[Tensor, Tensor], None]


@dataclass
class Full:
    """The full model's states of a text.

    Attributes:
        first: (B, T, D) input of the first skipped layer.
        kv: K/V of the layers that run, from the first skipped layer on.
        anchors: skipped layer -> anchor of the reuse rule at each position, (B, T, D); no entry with `skip`.
        states: (B, T, D) normed last states.
    """

    first: Tensor
    kv: KVCache
    anchors: dict[int, Tensor] = field(default_factory=dict)
    states: Tensor = field(init=False)


@torch.no_grad()
def read_full(model: PreTrainedModel, tokens: Tensor, schedule: Schedule) -> Full:
    """Run the full model over tokens (B, T)."""
    body, first = model.model, schedule.first_skipped
    h = body.embed_tokens(tokens)
    rope = body.rotary_emb(h, position_ids=torch.arange(tokens.shape[1], device=h.device)[None])
    full = Full(h, KVCache(len(body.layers)))
    for i, layer in enumerate(body.layers):
        if i == first:
            full.first = h
        skipped = i in schedule.dropped_set
        u = attend(layer, h, rope, cache=full.kv if i > first and not skipped else None)
        output = feed(layer, u)
        if skipped:
            anchor = rules.anchor_of(schedule.reuse, h, rules.replaced(schedule.part, u, output))
            if anchor is not None:
                full.anchors[i] = anchor
        h = output
    full.states = body.norm(h)
    return full


@dataclass(frozen=True)
class _Rows:
    """The student's rows, one for each LoRA position.

    Attributes:
        layout: the positions of the text.
        anchor: (N,) position of each row's anchor in the text.
        rope: rotary cosines and sines of the rows, each (1, N, hs).
        visible: (N, T + N) bool: the full model's keys up to the anchor, then the rows' own since then.
    """

    layout: Layout
    anchor: Tensor
    rope: Rope
    visible: Tensor

    @classmethod
    def of(cls, layout: Layout, rotary: Any, like: Tensor) -> _Rows:
        """Make the rows of a layout, in the number type and on the device of `like` (B, T, D)."""
        anchor = layout.order[layout.anchor]
        number = torch.arange(len(anchor), device=anchor.device)
        theirs = torch.arange(len(layout.order), device=anchor.device) <= anchor[:, None]
        own = (layout.start[:, None] <= number) & (number <= number[:, None])
        rope = rotary(like, position_ids=layout.order[None, layout.full :])
        return cls(layout, anchor, rope, torch.cat((theirs, own), 1))


def exact_states(
    model: PreTrainedModel,
    tokens: Tensor,
    prompt_tokens: int,
    schedule: Schedule,
    bank: Correction | None,
    measure: Measure = lambda d, cached: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed last states of LoRA steps, and the full model's at the same positions; the head makes them logits.

    Args:
        tokens: (B, T), without padding.
        prompt_tokens: P, the same for all texts: 1 to T - 1.
        schedule: with `refresh` repair, kv `write` and at least one skipped layer.
        bank: the corrections, on the model's device; gradients reach its tensors.
        measure: called with each correction and what its rule reuses, (B, N, D) both, as `Refresher.measure` is.

    Returns:
        The student's and the full model's states, (B, N, D), and the LoRA positions (T,) bool.
    """
    body = model.model
    layout = Layout.of(prompt_tokens, tokens.shape[1], schedule.period, tokens.device)
    full = read_full(model, tokens, schedule)
    rows = _Rows.of(layout, body.rotary_emb, full.first)
    h = full.first[:, layout.lora]
    for i in range(schedule.first_skipped, len(body.layers)):
        layer = body.layers[i]
        if i in schedule.dropped_set:
            h = _skip(i, layer, h, rows, full, schedule, bank, measure)
        else:
            h = _run(i, layer, h, rows, full, bank)
    return body.norm(h), full.states[:, layout.lora], layout.lora


def _skip(
    i: int,
    layer: Any,
    h: Tensor,
    rows: _Rows,
    full: Full,
    schedule: Schedule,
    bank: Correction | None,
    measure: Measure,
) -> Tensor:
    """A skipped layer: the reuse rule at the rows h (B, N, D)."""
    anchor = full.anchors[i][:, rows.anchor] if i in full.anchors else None
    d, gate = correct(bank, i, h, layer.post_attention_layernorm)
    if d is not None:
        if schedule.reuse == "state":  # each step adds its correction to the one before
            d = rows.layout.window_sum(d.float()).to(d.dtype)
        measure(d, h if anchor is None else anchor)
    u = rules.reused(schedule.reuse, h, anchor, gate, d)
    return u if schedule.part == "block" else feed(layer, u)


def _run(i: int, layer: Any, h: Tensor, rows: _Rows, full: Full, bank: Correction | None) -> Tensor:
    """A layer that runs, with the bank's part `kept`, at the rows h (B, N, D)."""
    keys, values = full.kv.filled(i)

    def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        both = torch.cat((keys, key), 2), torch.cat((values, value), 2)
        return F.scaled_dot_product_attention(query, *both, attn_mask=rows.visible, enable_gqa=True)

    return run_changed(layer, h, rows.rope, unchanged if bank is None else partial(bank.adapted, i), mix)
