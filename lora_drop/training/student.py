"""LoRA-Drop over a whole text in one pass, with gradients: what training runs instead of decoding step by step.

Position t of a text whose first P tokens are the prompt is decode step s = t - P + 1; the prompt's positions are full.
The pass keeps the positions in an order of its own, all full ones first: a skipped layer then runs on that slice alone
(its keys are those that decoding would have written, the prompt's and the refreshes', and no others), and the LoRA
positions after it take what the reuse rule makes of the output at their anchor. The logits equal those of step-by-step
decoding; a test holds them to it.

Shapes: B batch, T tokens, F full positions, N LoRA positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.adapters.bank import AdapterBank
from lora_drop.method.schedule import Schedule


@dataclass(frozen=True)
class Layout:
    """Where the positions of a text stand in the pass: full ones first, each kind in the text's order.

    Attributes:
        lora: (T,) bool, in the text's order.
        order: (T,) positions in the pass's order.
        full: F.
        anchor: (N,) for each LoRA position its anchor, as an index into the full ones.
        start: (N,) for each LoRA position the first one after its anchor, as an index into the LoRA ones.
        visible: (1, 1, T, T) bool, in the pass's order: True where a query (row) may see a key.
    """

    lora: Tensor
    order: Tensor
    full: int
    anchor: Tensor
    start: Tensor
    visible: Tensor

    @classmethod
    def of(cls, prompt_tokens: int, length: int, period: int, device: torch.device) -> Layout:
        """For texts of `length` tokens, the first `prompt_tokens` (P >= 1) being the prompt."""
        steps = torch.arange(length, device=device) - prompt_tokens + 1
        lora = (steps > 0) & (steps % period != 0)
        order = torch.cat(((~lora).nonzero()[:, 0], lora.nonzero()[:, 0]))
        full = length - int(lora.sum())
        return cls(
            lora,
            order,
            full,
            anchor=(~lora).cumsum(0)[lora] - 1,
            start=torch.arange(length - full, device=device) - steps[lora] % period + 1,
            visible=(order[None] <= order[:, None])[None, None],
        )


def attend(layer: Any, h: Tensor, rope: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
    """u = h + attention of one layer over the first positions of the pass, h (B, rows, D)."""
    rows = h.shape[1]
    attention, _ = layer.self_attn(
        layer.input_layernorm(h),
        position_embeddings=(rope[0][:, :rows], rope[1][:, :rows]),
        attention_mask=visible[..., :rows, :rows],
    )
    return h + attention


def feed(layer: Any, u: Tensor) -> Tensor:
    """u + MLP of one layer."""
    return u + layer.mlp(layer.post_attention_layernorm(u))


def reach(layer: nn.Module, h: Tensor, rope: tuple[Tensor, Tensor], layout: Layout, schedule: Schedule) -> Tensor:
    """What a skipped layer gives at the full positions (B, F, D): its output, or u with `part="attention"`."""
    # With kv="write" the LoRA positions' keys are there too, so they take part; their own results are left aside.
    rows = layout.full if schedule.kv == "skip" else h.shape[1]
    u = attend(layer, h[:, :rows], rope, layout.visible)[:, : layout.full]
    return u if schedule.part == "attention" else feed(layer, u)


def terms(layout: Layout, reuse: str, h: Tensor, reached: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The reuse rule at the LoRA positions, `base + gate * added + d(x)`, from the layer's input h (B, T, D).

    Args:
        reached: (B, F, D), from `reach`.

    Returns:
        base, added (None where the rule has no gate) and x, each (B, N, D).
    """
    at_full, at_lora = h[:, : layout.full], h[:, layout.full :]
    if reuse == "skip":
        return at_lora, None, at_lora
    if reuse == "residual":
        return at_lora, (reached - at_full)[:, layout.anchor], at_lora
    base = reached[:, layout.anchor]
    if reuse == "anchor":
        return base, None, at_lora
    # state: each LoRA step adds its correction to the one before. d is linear, so the sum of corrections from the
    # anchor on is the correction of the sum.
    total = nn.functional.pad(at_lora.cumsum(1), (0, 0, 1, 0))  # (B, N + 1, D), zero before the first
    return base, None, total[:, 1:] - total[:, layout.start]


def student_states(
    model: PreTrainedModel, tokens: Tensor, prompt_tokens: int, schedule: Schedule, bank: AdapterBank | None
) -> tuple[Tensor, Tensor]:
    """What LoRA-Drop decoding has after each token, and where its LoRA steps are.

    Args:
        tokens: (B, T), without padding.
        prompt_tokens: P, the same for all texts: 1 to T.
        bank: the corrections, on the model's device; gradients reach its tensors.

    Returns:
        The normed last hidden states (B, T, D), which the head turns into logits, and the LoRA positions (T,) bool.
    """
    body = model.model
    layout = Layout.of(prompt_tokens, tokens.shape[1], schedule.period, tokens.device)
    h = body.embed_tokens(tokens[:, layout.order])
    rope = body.rotary_emb(h, position_ids=layout.order[None])
    for i, layer in enumerate(body.layers):
        if i not in schedule.dropped:
            h = feed(layer, attend(layer, h, rope, layout.visible))
            continue
        reached = reach(layer, h, rope, layout, schedule)
        base, added, x = terms(layout, schedule.reuse, h, reached)
        own = bank if bank is not None and i in bank.a else None
        if added is not None:
            base = base + (own.gate[i] * added if own is not None else added)
        if own is not None:
            base = base + own.correction(i, x)
        h = torch.cat((reached, base), 1)
        if schedule.part == "attention":
            h = feed(layer, h)
    return body.norm(h)[:, layout.order.argsort()], layout.lora
