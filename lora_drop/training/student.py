"""LoRA-Drop over a whole text in one pass, with gradients: training runs this instead of decoding step by step.

Position t of a text whose first P tokens are the prompt is decode step s = t - P + 1; the prompt's positions are full.
The pass orders the positions anew, all full ones first. A skipped layer then runs on that slice alone, whose
keys are those that decoding would have written, the prompt's and the refreshes'. The LoRA positions after it take
their output from the reuse rule and the anchor. The logits equal those of step-by-step decoding; a test compares them.

Shapes: B batch, T tokens, F full positions, N LoRA positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.decode import rules
from lora_drop.decode.correction import Correction, correct
from lora_drop.decode.layer import Rope, attend, feed
from lora_drop.method.schedule import Schedule


@dataclass(frozen=True)
class Layout:
    """The order of a text's positions in the pass: full ones first, each kind in the text's order.

    Attributes:
        lora: (T,) bool, in the text's order.
        order: (T,) positions in the pass's order.
        full: F.
        anchor: (N,) each LoRA position's anchor, as an index into the full ones.
        start: (N,) the first LoRA position after the same anchor, as an index into the LoRA ones.
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
        """Make the layout of texts of `length` tokens with a prompt of `prompt_tokens` (P >= 1)."""
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

    def window_sum(self, x: Tensor) -> Tensor:
        """Each LoRA position's sum of x (B, N, D) from its anchor up to itself."""
        total = nn.functional.pad(x.cumsum(1), (0, 0, 1, 0))  # (B, N + 1, D), zero before the first
        return total[:, 1:] - total[:, self.start]


def attend_first(layer: Any, h: Tensor, rope: Rope, layout: Layout) -> Tensor:
    """u = h + attention of one layer over the first positions of the pass, h (B, rows, D)."""
    rows = h.shape[1]
    cos, sin = rope
    return attend(layer, h, (cos[:, :rows], sin[:, :rows]), layout.visible[..., :rows, :rows])


def at_full(layer: nn.Module, h: Tensor, rope: Rope, layout: Layout, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Output and f(h) (see `decode.rules`) of a skipped layer at the full positions, (B, F, D), from h (B, T, D)."""
    # With kv="write" the LoRA positions write keys too, so they take part; their outputs are discarded.
    rows = layout.full if schedule.kv == "skip" else h.shape[1]
    u = attend_first(layer, h[:, :rows], rope, layout)[:, : layout.full]
    output = feed(layer, u)
    return output, rules.replaced(schedule.part, u, output)


def at_lora(layout: Layout, reuse: str, h: Tensor, f: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the reuse rule reads at the LoRA positions of a skipped layer.

    Args:
        h: the layer's input (B, T, D).
        f: f(h) at the full positions, (B, F, D).

    Returns:
        The input, the anchor (None with `skip`), and what the correction reads, (B, N, D) each.
    """
    full, lora = h[:, : layout.full], h[:, layout.full :]
    anchors = rules.anchor_of(reuse, full, f)
    anchor = None if anchors is None else anchors[:, layout.anchor]
    # With `state` each step adds its correction to the one before; the sum from the anchor on is the correction of the
    # sum.
    return lora, anchor, layout.window_sum(lora) if reuse == "state" else lora


def skip(
    i: int, layer: Any, h: Tensor, anchor: Tensor | None, layout: Layout, schedule: Schedule, bank: Correction | None
) -> Tensor:
    """Output of a skipped layer at the LoRA positions h (B, N, D), with their anchors (None with `skip`)."""
    d, gate = correct(bank, i, h)
    if d is not None and schedule.reuse == "state":  # each step adds its correction to the one before
        d = layout.window_sum(d.float()).to(d.dtype)
    u = rules.reused(schedule.reuse, h, anchor, gate, d)
    return u if schedule.part == "block" else feed(layer, u)


def student_states(
    model: PreTrainedModel, tokens: Tensor, prompt_tokens: int, schedule: Schedule, bank: Correction | None
) -> tuple[Tensor, Tensor]:
    """Normed last hidden states of LoRA-Drop decoding after each token, and where its LoRA steps are.

    Args:
        tokens: (B, T), without padding.
        prompt_tokens: P, the same for all texts: 1 to T.
        bank: the corrections, on the model's device; gradients reach its tensors.

    Returns:
        The states (B, T, D), which the head turns into logits, and the LoRA positions (T,) bool.
    """
    body = model.model
    layout = Layout.of(prompt_tokens, tokens.shape[1], schedule.period, tokens.device)
    h = body.embed_tokens(tokens[:, layout.order])
    rope = body.rotary_emb(h, position_ids=layout.order[None])
    for i, layer in enumerate(body.layers):
        if i in schedule.dropped_set:
            output, f = at_full(layer, h, rope, layout, schedule)
            lora, anchor, _ = at_lora(layout, schedule.reuse, h, f)
            h = torch.cat((output, skip(i, layer, lora, anchor, layout, schedule, bank)), 1)
        else:
            h = feed(layer, attend_first(layer, h, rope, layout))
    return body.norm(h)[:, layout.order.argsort()], layout.lora
