"""One pass of the static decoder over a lane's buffers, which a CUDA graph can hold. It never waits for the device.

Shapes: D hidden size, V vocabulary, nh heads, nkv K/V heads, hs head size, R rows of a pass, S tokens that attention
reads, n dropped layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode import rules
from lora_drop.decode.correction import Correction
from lora_drop.decode.layer import projections
from lora_drop.decode.reference import ReferenceDecoder, stacked
from lora_drop.decode.static.buffers import Pass, Results, StaticState, Store, Window
from lora_drop.decode.static.layers import EAGER, Functions, Pair, Projection, best_for, has_kernels
from lora_drop.decode.weights import fused, qk_norms


@dataclass(frozen=True)
class StaticLayer:
    """One layer's weights: norms (D,) and fused projections. `qk_norm` is Qwen3's, (nh + nkv, hs), else None."""

    attention_norm: Tensor
    qkv: Projection
    qk_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


@dataclass
class StaticWeights:
    """A model's own weights with q, k, v and gate, up fused; its modules keep views, so that no weight exists twice.

    Attributes:
        decoder_name: name of the decoder that runs them.
        functions: compute the layers, compiled or not.
        split: the module `split`; None is torch's attention.
        captures: whether passes become graphs; False after a capture that failed.
        store: buffers and graphs that no lane uses now.
    """

    layers: list[StaticLayer]
    decoder_name: str
    functions: Functions = EAGER
    split: ModuleType | None = None
    captures: bool = False
    store: Store = field(default_factory=Store, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> StaticWeights:
        """Fuse the weights of a model that `is_supported`."""
        like = model.get_input_embeddings().weight
        name = f"static ({str(like.dtype).removeprefix('torch.')})"
        layers = [_layer(layer) for layer in model.model.layers]
        if like.device.type != "cuda":
            return cls(layers, name)
        return cls(layers, name, best_for(like.device), split_for(like.device), captures=True)


def _layer(layer: Any) -> StaticLayer:
    return StaticLayer(
        attention_norm=layer.input_layernorm.weight,
        qk_norm=qk_norms(layer.self_attn),
        mlp_norm=layer.post_attention_layernorm.weight,
        **{name: fused(*linears) for name, linears in projections(layer).items()},
    )


def split_for(device: torch.device) -> ModuleType | None:
    """The module of attention split over the keys; None without Triton or a GPU that it supports."""
    if not has_kernels(device):
        return None
    try:
        from lora_drop.decode.static import split
    except ImportError:
        return None
    return split


class StaticPasses(ReferenceDecoder):
    """The passes of `StaticDecoder` over the buffers of a lane's state."""

    def __init__(self, model: PreTrainedModel, weights: StaticWeights):
        super().__init__(model)
        config = model.config
        self.name, self.weights = weights.decoder_name, weights
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = self.layers[0].self_attn.head_dim, config.rms_norm_eps
        self.runs_ahead = self.device.type == "cuda"

    def run(self, state: StaticState, each: Pass, reads: bool = True) -> Results:
        """Run one pass over the pending rows and, if it `reads`, a token; padding rows repeat the last one."""
        schedule, buffers, watched = state.schedule, state.buffers, []
        assert buffers is not None
        first, state.row_anchors = schedule.first_skipped, {}
        window = self._window(state, each.rows)
        if reads:
            h = F.embedding(buffers.token[:, 0], self.embed.weight)  # (1, D)
            last = window if each.rows == 1 else self._window(state, 1)
            for i in range(first):
                h = self._full(i, h, last, state)
            if schedule.repairs and (each.lora or each.rows > 1):
                buffers.pending.index_copy_(0, buffers.counts[2:], h)
        if window.rows is not None:
            h = buffers.pending.index_select(0, window.rows)
        elif not reads:
            h = buffers.pending[:1]
        wanted = slice(None) if schedule.verifies else slice(-1, None)
        if each.lora:
            window = dataclasses.replace(window, bank=state.bank)
        for i in range(first, self.num_layers):
            skipped = i in schedule.dropped_set
            h = (self._lora if each.lora and skipped else self._full)(i, h, window, state)
            if skipped:
                watched.append(h[wanted])
        h = h[wanted]
        logits = self._logits(h, state, each.lora)
        seen = stacked(watched, h) if state.watch else None
        return Results(
            logits, *self.weights.functions.choose(logits), seen, state.refresher.drain(), state.row_anchors
        )

    def _logits(self, h: Tensor, state: StaticState, lora: bool) -> Tensor:
        screen = state.screened_head if lora else None
        if screen is not None:
            return screen.logits(self.norm(h), self.head.weight)
        return self.weights.functions.head(h, self.norm.weight, self.head.weight, self.eps)

    def _window(self, state: StaticState, rows: int) -> Window:
        """Places of the rows of a pass: a single row is the token, more rows begin with the pending ones."""
        buffers = state.buffers
        assert buffers is not None
        position, length, pending = buffers.counts.split(1)
        at = None
        if rows > 1:
            at = torch.arange(rows, device=self.device).minimum(pending)
            position, length = position - pending + at, length + at
        cos, sin = (table.index_select(0, position) for table in buffers.rope)
        mask, dropped = self._mask(state, 0, position), state.schedule.dropped
        masks = mask, self._mask(state, dropped[0], length) if dropped else mask
        return Window((cos, sin), (position, length), masks, at)

    def _mask(self, state: StaticState, layer: int, places: Tensor) -> Tensor | None:
        """Mask (1, 1, R nh / nkv, S) to add to the scores: minus infinity after a row's own place."""
        if self.weights.split is not None:
            return None
        # A graph has to read the whole capacity; without one the host knows how many tokens there are.
        tokens = state.kv.store(layer).shape[3]
        if not self.weights.captures:
            tokens = min(tokens, state.kv.lengths[layer] + len(places))
        beyond = torch.arange(tokens, device=self.device) > places[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.dtype, device=self.device).masked_fill_(beyond, -torch.inf)
        group = self.heads // self.kv_heads
        return mask[:, None].expand(-1, group, -1).reshape(1, 1, -1, tokens)

    def _project(self, i: int, h: Tensor, rope: Pair, bank: Correction | None = None) -> Tensor:
        """Rotated queries and keys, and values, (R, nh + 2 nkv, hs), of a layer's inputs (R, D)."""
        own, count = self.weights.layers[i], self.heads + self.kv_heads
        change = _change(bank, i, "qkv")
        return self.weights.functions.project(
            h, own.attention_norm, own.qkv, own.qk_norm, rope, count, self.eps, change
        )

    def _write(self, i: int, heads: Tensor, window: Window, state: StaticState) -> Tensor:
        """Write the rows' K/V, the last of `heads`, to their places; return them, (2, 1, nkv, R, hs)."""
        both = heads[:, self.heads :].unflatten(1, (2, 1, self.kv_heads)).permute(1, 2, 3, 0, 4)
        if window.rows is not None:  # padding rows write the last row's K/V
            both = both.index_select(3, window.rows)
        state.kv.store(i).index_copy_(3, window.places[i in state.schedule.dropped_set], both)
        return both

    def _attend(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """u = h + attention, (R, D). Writes K/V."""
        rows, dropped, store = len(h), i in state.schedule.dropped_set, state.kv.store(i)
        heads = self._project(i, h, window.rope, window.bank)
        both, mask = self._write(i, heads, window, state), window.masks[dropped]
        if mask is None:
            assert self.weights.split is not None
            mixed = self.weights.split.attend(heads, store, window.places[dropped], self.heads)
        else:
            keys, values = store.narrow(3, 0, mask.shape[-1]).unbind(0)
            # The query heads of a K/V head become rows of one query, so that no key is copied for them.
            query = heads[:, : self.heads].unflatten(1, (self.kv_heads, -1)).transpose(0, 1)  # (nkv, R, nh / nkv, hs)
            mixed = F.scaled_dot_product_attention(query.flatten(1, 2)[None], keys, values, attn_mask=mask)
            mixed = mixed[0].unflatten(1, (rows, -1)).transpose(0, 1).reshape(rows, -1)
        if dropped and rows > 1 and state.schedule.kv == "skip":  # keep only the last row of the pass
            store.index_copy_(3, window.places[1][:1], both[:, :, :, -1:])
        change = _change(window.bank, i, "out")
        return self.weights.functions.close(mixed, h, self.weights.layers[i].out, change)

    def _feed(self, i: int, u: Tensor, bank: Correction | None = None) -> Tensor:
        """u + MLP."""
        own, changes = self.weights.layers[i], (_change(bank, i, "gate_up"), _change(bank, i, "down"))
        return self.weights.functions.feed(u, own.mlp_norm, own.gate_up, own.down, self.eps, changes)

    def _full(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """A whole layer, (R, D); a layer of the schedule leaves its anchor."""
        u = self._attend(i, h, window, state)
        output = self._feed(i, u, window.bank)
        schedule = state.schedule
        if i in schedule.dropped_set:
            anchors = rules.anchor_of(schedule.reuse, h, rules.replaced(schedule.part, u, output))  # (R, D)
            state.anchors[i] = None if anchors is None else anchors[-1:]
            if schedule.verifies:
                state.row_anchors[i] = [None] * len(h) if anchors is None else list(anchors.split(1))
        return output

    def _lora(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """A skipped layer at a LoRA step, (1, D): no attention, and with `part="block"` no MLP either."""
        schedule, bank, own = state.schedule, state.bank, self.weights.layers[i]
        if schedule.kv == "write" and not schedule.repairs:
            self._write(i, self._project(i, h, window.rope), window, state)
        anchor: Tensor | None = state.anchors[i]
        parts: tuple[Any, ...] = ()
        if bank is not None and i in bank.a:
            linear, mlp_norm = (bank.a[i], bank.b[i], bank.scale), (own.mlp_norm, self.eps)
            parts = bank.gate[i], linear, bank.mlp.get(i), mlp_norm
        u, d = self.weights.functions.skip(h, anchor, schedule.reuse, *parts)
        if d is not None:
            state.refresher.measure(d, h if anchor is None else anchor)
        if schedule.reuse == "state":
            state.anchors[i] = u
        return u if schedule.part == "block" else self._feed(i, u)


def _change(bank: Correction | None, layer: int, projection: str) -> Pair | None:
    """The bank's change of a projection of a layer that runs."""
    return None if bank is None else bank.kept.get(layer, {}).get(projection)
