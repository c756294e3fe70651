"""The decoder on a GPU: a pass is one CUDA graph, a full step, a LoRA step or a repair, over static buffers.

At batch 1 a step is hundreds of small kernels, and launching them one by one from Python costs more than they do. So
each kind of pass is captured once and replayed. Nothing of a generation is inside a graph: token, places, caches and
anchors are in buffers of the lane's state, which all its graphs share, so they may be replayed in any order.

Attention reads a span of the cache that grows by doubling, with a mask for what is not filled yet; each span has
graphs of its own, captured when it is first met, and so has each number of rows of a repair. The first ones are
captured when a lane starts, off its clock.

On other devices the very same pass runs without a graph; the tests hold it against the reference there. Prefill and
`read` are the reference's everywhere.

Shapes: D hidden size, V vocabulary, nh heads, nkv K/V heads, hs head size, R rows of a pass, S tokens that attention
reads, n dropped layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode.buffers import Pass, Results, Rope, StaticHidden, StaticState, Window, capture, span
from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.prompt import Prefilled
from lora_drop.decode.reference import ReferenceDecoder, first_skipped, stacked
from lora_drop.decode.step import DecoderOutput, DecodeState
from lora_drop.decode.weights import fused, qk_norms
from lora_drop.method.schedule import Schedule

Projection = tuple[Tensor, Tensor | None]  # weight (N, K), bias (N,)


@dataclass(frozen=True)
class StaticLayer:
    """One layer's weights: norms (D,), and fused projections. `qk_norm` is Qwen3's, (nh + nkv, hs), else None."""

    attention_norm: Tensor
    qkv: Projection
    qk_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


@dataclass(frozen=True)
class StaticWeights:
    """A model's own weights with q, k, v and gate, up fused; its modules keep views, so that none is there twice.

    Attributes:
        decoder_name: the name of the decoder that runs them.
    """

    layers: list[StaticLayer]
    decoder_name: str

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> StaticWeights:
        """Fuse a model that `is_supported`."""
        dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        return cls([_layer(layer) for layer in model.model.layers], f"static ({dtype})")


# `Any`: to a type checker each attribute of a transformers module is a tensor or a module.
def _layer(layer: Any) -> StaticLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return StaticLayer(
        layer.input_layernorm.weight,
        fused(attention.q_proj, attention.k_proj, attention.v_proj),
        qk_norms(attention),
        fused(attention.o_proj),
        layer.post_attention_layernorm.weight,
        fused(mlp.gate_proj, mlp.up_proj),
        fused(mlp.down_proj),
    )


class StaticDecoder(ReferenceDecoder):
    """Passes for one text over static buffers; `start` captures, and all else is the reference's."""

    def __init__(self, model: PreTrainedModel, weights: StaticWeights):
        super().__init__(model)
        config = model.config
        self.name = weights.decoder_name
        self._weights = weights.layers
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = self.layers[0].self_attn.head_dim
        self._intermediate, self._eps = config.intermediate_size, config.rms_norm_eps
        self._captures = self.device.type == "cuda"

    def new_state(
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False
    ) -> StaticState:
        """See `step.Decoder`. Without `tokens` the buffers grow, and are captured anew, by doubling."""
        n = self.num_layers
        return StaticState(schedule, bank, KVCache(n), StaticHidden(n), watch, tokens=tokens)

    @torch.inference_mode()
    def start(self, prompt: Prefilled, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`. Reserves the caches and captures the first passes too."""
        assert isinstance(state, StaticState)
        found, schedule = super().start(prompt, state), state.schedule
        state.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        state.counts = torch.zeros(3, dtype=torch.long, device=self.device)
        if schedule.repairs:
            size = self.embed.weight.shape[1]
            state.pending = torch.zeros(schedule.period, size, dtype=self.dtype, device=self.device)
        self._reserve(state, max(state.tokens, state.position + 1))
        if self._captures:
            if not schedule.is_baseline:
                self._graph(state, self._place(state, state.position, 1, lora=True))
            if not schedule.repairs:
                self._graph(state, self._place(state, state.position, 1))
            elif state.position + schedule.period <= state.tokens:
                # As it will be; what it writes lies where the coming tokens go.
                self._graph(state, self._place(state, state.position, schedule.period))
        return found

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`; token (1, 1)."""
        assert isinstance(state, StaticState)
        lora = not state.refresher.begin()
        return self._advance(token, state, lora, 1 if lora else len(state.entered) + 1)

    @torch.inference_mode()
    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`; the rows are those of one pass."""
        assert isinstance(state, StaticState)
        return self._advance(token, state, False, len(state.entered) + (token is not None))

    def _advance(self, token: Tensor | None, state: StaticState, lora: bool, rows: int) -> DecoderOutput:
        """Run a pass, and count what it has read and written."""
        reads = token is not None
        if state.position + reads > state.tokens:
            self._reserve(state, 2 * state.tokens)
        if token is not None:
            state.token.copy_(token)
        each = self._place(state, state.position + reads - rows, rows, lora)
        # The pass over the last drafts comes once in a lane: that is no time to capture it.
        found = self._graph(state, each)() if self._captures and reads else self._run(state, each, reads)
        schedule = state.schedule
        grown = rows if schedule.kv == "write" else 1
        if lora and (schedule.kv == "skip" or schedule.repairs):
            grown = 0
        for i in range(self.num_layers):
            state.kv.lengths[i] += grown if i in schedule.dropped_set else reads
        state.position += reads
        count = len(state.entered)
        state.entered = [*state.entered, state.pending[count : count + 1]] if lora and schedule.repairs else []
        state.passed = found.passed
        state.refresher.take(found.ratios)
        # Copies: the next replay writes over what a graph gave.
        logits, watched = found.logits.clone(), None if found.watched is None else found.watched.clone()
        state.refresher.end(logits[-1:])
        return DecoderOutput(logits, watched, state.refresher.entropy, rows)

    def _reserve(self, state: StaticState, tokens: int) -> None:
        """Room for `tokens` tokens; a skipped layer that writes no K/V at LoRA steps gets what its refreshes need."""
        schedule, prompt = state.schedule, state.position
        sparse = schedule.kv == "skip" and not schedule.is_adaptive
        for i in range(self.num_layers):
            need, filled = tokens, state.kv.lengths[i]
            if sparse and i in schedule.dropped_set:
                beside = schedule.period - 1 if schedule.repairs else 0  # rows of a pass that are not kept
                need = min(tokens, filled + (tokens - prompt) // schedule.period + 1 + beside)
            # What is masked counts nothing, but nothing times NaN is NaN.
            state.kv.reserve(state.kv.store(i)[0], i, need)[:, :, :, filled:].zero_()
        positions = torch.arange(tokens, device=self.device)[None]
        cos, sin = self.rotary(self.embed.weight[:1, None], position_ids=positions)  # (1, tokens, hs)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        state.rope = cos[0].to(self.dtype), sin[0].to(self.dtype)
        state.tokens = tokens
        state.graphs.clear()  # they know the old buffers

    def _place(self, state: StaticState, start: int, rows: int, lora: bool = False) -> Pass:
        """Tell the buffers where the next pass stands, whose first row is the token at position `start`."""
        other = state.schedule.dropped[0] if state.schedule.dropped else 0
        held = state.kv.lengths[other]
        state.counts.copy_(torch.tensor((start, held, len(state.entered))), non_blocking=True)
        return Pass(lora, rows, (span(state.kv, 0, start + rows), span(state.kv, other, held + rows)))

    def _graph(self, state: StaticState, each: Pass) -> Callable[[], Results]:
        """A pass that was placed as a call without arguments."""
        if each not in state.graphs:
            # The K/V and the pending row that it writes aside are written again.
            anchors = [vector for vector in state.hidden.vectors if vector is not None]
            state.graphs[each] = capture(lambda: self._run(state, each), anchors, self.device)
        return state.graphs[each]

    def _run(self, state: StaticState, each: Pass, reads: bool = True) -> Results:
        """One pass over the static buffers: what a graph holds. It reads a token, or the pending rows alone."""
        schedule, watched = state.schedule, []
        first, state.passed = first_skipped(schedule), {}
        window, h = self._window(state, each), state.pending[: each.rows - reads] if schedule.repairs else None
        if reads:
            token = F.embedding(state.token[:, 0], self.embed.weight)  # (1, D)
            last = self._window(state, each, each.rows - 1) if each.rows > 1 else window
            for i in range(first):
                token = self._full(i, token, last, state)
            if each.lora and h is not None:
                state.pending.index_copy_(0, state.counts[2:], token)
            h = token if each.rows == 1 or h is None else torch.cat((h, token))
        assert h is not None
        judged = slice(None) if schedule.judges else slice(-1, None)
        if each.lora:
            window = dataclasses.replace(window, bank=state.bank)
        for i in range(first, self.num_layers):
            skipped = i in schedule.dropped_set
            h = (self._lora if each.lora and skipped else self._full)(i, h, window, state)
            if skipped:
                watched.append(h[judged])
        h = h[judged]
        normed = self._norm(h, self.norm.weight)
        logits = self._lora_logits(normed, state) if each.lora else self.head(normed)
        return Results(logits, stacked(watched, h) if state.watch else None, state.refresher.drain(), state.passed)

    def _window(self, state: StaticState, each: Pass, skip: int = 0) -> Window:
        """Where the rows of a pass stand, without the first `skip`."""
        places = state.counts[:2, None]  # (2, R)
        if each.rows > 1:
            places = places + torch.arange(skip, each.rows, device=self.device)
        one, two = places
        cos, sin = (table.index_select(0, one)[:, None] for table in state.rope)
        return Window((cos, sin), (one, two), (self._mask(each.spans[0], one), self._mask(each.spans[1], two)))

    def _mask(self, tokens: int, places: Tensor) -> Tensor:
        """(1, 1, R nh / nkv, S), to be added to the scores: minus infinity after the token that a row is."""
        beyond = torch.arange(tokens, device=self.device) > places[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.dtype, device=self.device).masked_fill_(beyond, -torch.inf)
        group = self._heads // self._kv_heads
        return mask[:, None].expand(-1, group, -1).reshape(1, 1, -1, tokens)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _linear(self, i: int, projection: str, x: Tensor, bank: Correction | None = None) -> Tensor:
        """One of `PROJECTIONS` of a layer, with the bank's change to it."""
        y = F.linear(x, *getattr(self._weights[i], projection))
        return y if bank is None else bank.adapted(i, projection, x, y)

    def _project(self, i: int, x: Tensor, rope: Rope, bank: Correction | None = None) -> Tensor:
        """Queries, keys and values (R, nh + 2 nkv, hs) of normed inputs (R, D), rotated."""
        heads = self._linear(i, "qkv", x, bank).view(x.shape[0], -1, self._head_dim)
        turned = heads[:, : self._heads + self._kv_heads]
        weight = self._weights[i].qk_norm
        if weight is not None:
            turned.copy_(F.rms_norm(turned, (self._head_dim,), None, self._eps).mul_(weight))
        cos, sin = rope
        torch.addcmul(turned * cos, turned.roll(self._head_dim // 2, -1), sin, out=turned)
        return heads

    def _write(self, i: int, heads: Tensor, window: Window, state: StaticState) -> Tensor:
        """Put the rows' K/V, the last of `heads`, in their places; gives them, (2, 1, nkv, R, hs)."""
        both = heads[:, self._heads :].unflatten(1, (2, 1, self._kv_heads)).permute(1, 2, 3, 0, 4)
        state.kv.store(i).index_copy_(3, window.places[i in state.schedule.dropped_set], both)
        return both

    def _attend(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """u = h + attention, (R, D); writes K/V."""
        rows, dropped = len(h), i in state.schedule.dropped_set
        heads = self._project(i, self._norm(h, self._weights[i].attention_norm), window.rope, window.bank)
        both = self._write(i, heads, window, state)
        mask, store = window.masks[dropped], state.kv.store(i)
        keys, values = store.narrow(3, 0, mask.shape[-1]).unbind(0)
        # The query heads of a K/V head stand as rows of one query: no key is copied for them.
        query = heads[:, : self._heads].unflatten(1, (self._kv_heads, -1)).transpose(0, 1)  # (nkv, R, nh / nkv, hs)
        mixed = F.scaled_dot_product_attention(query.flatten(1, 2)[None], keys, values, attn_mask=mask)
        if dropped and rows > 1 and state.schedule.kv == "skip":  # of the pass it keeps the last row alone
            store.index_copy_(3, window.places[1][:1], both[:, :, :, -1:])
        mixed = mixed[0].unflatten(1, (rows, -1)).transpose(0, 1).reshape(rows, -1)
        return self._linear(i, "out", mixed, window.bank).add_(h)

    def _feed(self, i: int, u: Tensor, bank: Correction | None = None) -> Tensor:
        """u + MLP."""
        x = self._norm(u, self._weights[i].mlp_norm)
        gate, up = self._linear(i, "gate_up", x, bank).split(self._intermediate, 1)
        return self._linear(i, "down", F.silu(gate).mul_(up), bank).add_(u)

    def _full(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """A whole layer, (R, D); one that LoRA steps skip leaves its anchor behind."""
        u = self._attend(i, h, window, state)
        out = self._feed(i, u, window.bank)
        schedule = state.schedule
        if i in schedule.dropped_set:
            reached = out if schedule.part == "block" else u
            remembered = self._remember(schedule.reuse, h, reached)
            state.hidden[i] = None if remembered is None else remembered[-1:]
            if schedule.judges:
                state.passed[i] = [None] * len(h) if remembered is None else list(remembered.split(1))
        return out

    def _lora(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """A skipped layer at a LoRA step: no attention, and with `part="block"` no MLP either."""
        schedule, bank, weights = state.schedule, state.bank, self._weights[i]
        if schedule.kv == "write" and not schedule.repairs:
            self._write(i, self._project(i, self._norm(h, weights.attention_norm), window.rope), window, state)
        own = bank if bank is not None and i in bank.a else None
        base = h if schedule.reuse == "skip" else state.hidden[i]
        if schedule.reuse == "residual":
            base = torch.addcmul(h, own.gate[i], base) if own is not None else h + base
        u = base
        if own is not None:
            d = own.correction(i, h)
            if i in own.mlp:
                d = d + own.bottleneck(i, self._norm(h, weights.mlp_norm))
            state.refresher.measure(d, h if schedule.reuse == "skip" else state.hidden[i])
            u = base + d
        if schedule.reuse == "state":
            state.hidden[i] = u
        return u if schedule.part == "block" else self._feed(i, u)
