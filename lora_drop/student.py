"""LoRA-Drop over a whole text in one pass, with gradients: what training runs instead of decoding step by step.

Position t of a text whose first P tokens are the prompt is decode step s = t - P + 1; the prompt's positions are full.
Each layer computes its full output everywhere; a dropped layer then takes, at the positions of LoRA steps, what its
reuse rule makes of the output at the position's anchor. Its keys are those that decoding would have written and no
others: the prompt's and the refreshes'. The logits equal those of step-by-step decoding; a test holds them to it.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.adapters import AdapterBank
from lora_drop.schedule import Schedule


def lora_positions(prompt_tokens: Tensor, length: int, period: int) -> Tensor:
    """(B, T) bool: the positions of LoRA steps, from the prompts' lengths (B,)."""
    steps = torch.arange(length, device=prompt_tokens.device)[None] - prompt_tokens[:, None] + 1
    return (steps > 0) & (steps % period != 0)


def student_states(
    model: PreTrainedModel, tokens: Tensor, prompt_tokens: Tensor, schedule: Schedule, bank: AdapterBank | None
) -> tuple[Tensor, Tensor]:
    """What LoRA-Drop decoding has after each token, and where its LoRA steps are.

    Args:
        tokens: (B, T), without padding.
        prompt_tokens: (B,), each text's P: 1 to T.
        bank: the corrections, on the model's device; gradients reach its tensors.

    Returns:
        The normed last hidden states (B, T, D), which the head turns into logits, and `lora_positions` (B, T).
    """
    body = model.model
    batch, length = tokens.shape
    lora = lora_positions(prompt_tokens, length, schedule.period)
    here = torch.arange(length, device=tokens.device)
    anchor = torch.where(lora, 0, here).cummax(dim=1).values  # (B, T): the last full position up to t
    causal = (here[None] <= here[:, None])[None, None]  # (1, 1, T, T)
    # A query sees itself in any case: where it is a LoRA step its result is not used, and a row without a key is NaN.
    written = causal & (~lora[:, None, None] | torch.eye(length, dtype=torch.bool, device=tokens.device))
    h = body.embed_tokens(tokens)
    rope = body.rotary_emb(h, position_ids=here[None])
    for i, layer in enumerate(body.layers):
        dropped = i in schedule.dropped
        mask = written if dropped and schedule.kv == "skip" else causal
        attention, _ = layer.self_attn(layer.input_layernorm(h), position_embeddings=rope, attention_mask=mask)
        u = h + attention
        if schedule.part == "attention":
            if dropped:
                u = torch.where(lora[..., None], _reuse(i, h, u, anchor, lora, schedule, bank), u)
            h = u + layer.mlp(layer.post_attention_layernorm(u))
            continue
        out = u + layer.mlp(layer.post_attention_layernorm(u))
        h = torch.where(lora[..., None], _reuse(i, h, out, anchor, lora, schedule, bank), out) if dropped else out
    return body.norm(h), lora


def _reuse(
    i: int, h: Tensor, full: Tensor, anchor: Tensor, lora: Tensor, schedule: Schedule, bank: AdapterBank | None
) -> Tensor:
    """What layer i gives at LoRA steps, from its input h and its full output (or u, after attention), (B, T, D)."""
    corrected = bank is not None and i in bank.a
    d = bank.correction(i, h) if corrected else torch.zeros_like(h)

    def at_anchor(x: Tensor) -> Tensor:
        return x.gather(1, anchor[..., None].expand_as(x))

    if schedule.reuse == "skip":
        return h + d
    if schedule.reuse == "residual":
        gate = bank.gate[i] if corrected else 1.0
        return h + gate * at_anchor(full - h) + d
    if schedule.reuse == "anchor":
        return at_anchor(full) + d
    # state: each LoRA step adds its correction to the one before, so from the anchor on they sum up.
    total = torch.where(lora[..., None], d, 0).cumsum(1)
    return at_anchor(full) + total - at_anchor(total)
