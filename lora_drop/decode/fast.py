"""The fast decoder: the reference's interface, single-token steps over fused or packed weights.

Prefill and the audit's chunks go through the model's own modules, as in the reference; only the step that decoding
repeats is written anew, with as few calls as there are. A test holds it against the reference for every rule, part, kv
rule and architecture.

Shapes: D hidden size, nh heads, nkv K/V heads, hs head size, S tokens in a layer's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode.reference import Decoder
from lora_drop.decode.step import DecodeState
from lora_drop.decode.weights import StepWeights

ROPE_BLOCK = 256  # positions whose cosines and sines are computed together
# From this many cached tokens on, two matrix products are faster than the fused attention kernel for a single query.
LONG = 192


def is_supported(model: PreTrainedModel) -> bool:
    """Whether `FastDecoder` computes what the model's own modules do.

    Rotary embeddings must be functions of the position alone (some scalings change with the length reached), the
    activation SiLU, and the MLP without biases.
    """
    config = model.config
    return (
        model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
    )


class FastDecoder(Decoder):
    """`step` for one token of one text over `StepWeights`; all else is the reference's."""

    def __init__(self, model: PreTrainedModel, weights: StepWeights):
        super().__init__(model)
        config = model.config
        self.name = f"fast ({weights.kind})"
        self.weights = weights
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = self.layers[0].self_attn.head_dim
        self._group = self._heads // self._kv_heads
        self._scale = self._head_dim**-0.5
        self._intermediate = config.intermediate_size
        self._eps = config.rms_norm_eps
        self._rope_blocks: dict[int, tuple[Tensor, Tensor]] = {}  # functions of the position alone
        # ||x|| to sqrt(mean(x^2) + eps): hypot(||x||, sqrt(D eps)) / sqrt(D)
        self._norm_terms = {
            size: (torch.tensor((size * self._eps) ** 0.5), size**-0.5)
            for size in (config.hidden_size, self._head_dim)
        }

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState, watch: list[Tensor] | None = None) -> Tensor:
        """Decode one token (1, 1). Returns logits (1, V); see `Decoder.step`."""
        lora = not state.refresher.begin()
        dropped = state.schedule.dropped_set
        h = F.embedding(token[:, 0], self.embed.weight)  # (1, D)
        rope = self._rope(state.position)
        for i in range(len(self.layers)):
            if i not in dropped:
                h = self._full(i, h, rope, state)
                continue
            h = self._lora(i, h, rope, state) if lora else self._refresh(i, h, rope, state)
            if watch is not None:
                watch.append(h)
        state.position += 1
        logits = self.weights.head(self._norm(h, self.norm.weight))
        state.refresher.end(logits)
        return logits

    def _rope(self, position: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (hs,) of a position: x * cos + roll(x, hs / 2) * sin rotates."""
        block, at = divmod(position, ROPE_BLOCK)
        if block not in self._rope_blocks:
            positions = torch.arange(block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK, device=self.device)[None]
            cos, sin = self.rotary(self.embed.weight[:1, None], position_ids=positions)  # (1, ROPE_BLOCK, hs)
            sin = torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), -1)
            self._rope_blocks[block] = cos[0].to(self.weights.dtype), sin[0].to(self.weights.dtype)
        cos, sin = self._rope_blocks[block]
        return cos[at], sin[at]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of (1, D), in calls that cost less than the composite `rms_norm` of a CPU."""
        root, share = self._norm_terms[x.shape[-1]]
        size = torch.hypot(torch.linalg.vector_norm(x, dtype=torch.float32), root).mul_(share)
        return torch.div(x, size).mul_(weight)

    def _project(self, i: int, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values (nh + 2 nkv, hs) of a normed input (1, D), rotated."""
        weights = self.weights.layers[i]
        heads = weights.qkv(x).view(-1, self._head_dim)
        turned = heads[: self._heads + self._kv_heads]
        if weights.qk_norm is not None:
            turned.copy_(F.rms_norm(turned, (self._head_dim,), None, self._eps).mul_(weights.qk_norm))
        cos, sin = rope
        torch.addcmul(turned * cos, turned.roll(self._head_dim // 2, -1), sin, out=turned)
        return heads

    def _attend(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """u = h + attention; writes K/V."""
        weights = self.weights.layers[i]
        heads = self._project(i, self._norm(h, weights.attention_norm), rope)
        held = self._write(i, heads, state)
        # The query heads of a K/V head stand as rows of one query: no key is copied for them.
        query = heads[: self._heads].view(1, self._kv_heads, self._group, self._head_dim)
        return weights.out(self._mix(i, query, held, state).reshape(1, -1)).add_(h)

    def _write(self, i: int, heads: Tensor, state: DecodeState) -> Tensor:
        """Append the token's K/V, the last of `heads`; returns all that the layer holds, (2, 1, nkv, S, hs)."""
        return state.kv.append(heads[self._heads :].view(2, 1, self._kv_heads, self._head_dim), i)

    def _mix(self, i: int, query: Tensor, held: Tensor, state: DecodeState) -> Tensor:
        """Attention of (1, nkv, nh / nkv, hs) over all that the layer holds."""
        keys, values = held.unbind(0)
        if keys.shape[2] < LONG:
            return F.scaled_dot_product_attention(query, keys, values)
        scores = torch.bmm(query[0] * self._scale, keys[0].transpose(1, 2))
        return torch.bmm(scores.softmax(-1), values[0])

    def _feed(self, i: int, u: Tensor) -> Tensor:
        """u + MLP."""
        weights = self.weights.layers[i]
        gate, up = weights.gate_up(self._norm(u, weights.mlp_norm)).split(self._intermediate, 1)
        return weights.down(F.silu(gate).mul_(up)).add_(u)

    def _full(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        return self._feed(i, self._attend(i, h, rope, state))

    def _refresh(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """A droppable layer at a full step: it leaves its anchor behind."""
        u = self._attend(i, h, rope, state)
        out = self._feed(i, u)
        state.hidden[i] = self._remember(state.schedule.reuse, h, out if state.schedule.part == "block" else u)
        return out

    def _lora(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """A dropped layer at a LoRA step."""
        schedule, bank = state.schedule, state.bank
        if schedule.kv == "write":
            heads = self._project(i, self._norm(h, self.weights.layers[i].attention_norm), rope)
            self._write(i, heads, state)
        corrected = bank is not None and i in bank.a
        base = h if schedule.reuse == "skip" else state.hidden[i]
        if schedule.reuse == "residual":
            base = torch.addcmul(h, bank.gate[i], base) if corrected else h + base
        u = base
        if corrected:
            d = bank.correction(i, h)
            state.refresher.measure(d, h if schedule.reuse == "skip" else state.hidden[i])
            u = base + d
        if schedule.reuse == "state":
            state.hidden[i] = u
        return u if schedule.part == "block" else self._feed(i, u)
