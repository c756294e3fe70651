"""The decoder on a GPU: a decode step is one CUDA graph, a full one or a LoRA one, over static buffers.

At batch 1 a step is hundreds of small kernels, and launching them one by one from Python costs more than they do. So
each kind of step is captured once and replayed. Nothing of a generation is inside a graph: token, positions, caches
and anchors are in buffers of the lane's state, which all its graphs share, so they may be replayed in any order.

Attention reads a span of the cache that grows by doubling, with a mask for what is not filled yet; each span has
graphs of its own, captured when it is first met. The first ones belong to prefill, on the clock of the first token.

On other devices the very same step runs without a graph; the tests hold it against the reference there. Prefill and
`read` are the reference's everywhere.

Shapes: D hidden size, V vocabulary, nh heads, nkv K/V heads, hs head size, S tokens that attention reads, n dropped
layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.reference import ReferenceDecoder, stacked
from lora_drop.decode.step import DecoderOutput, DecodeState
from lora_drop.decode.weights import fused, qk_norms
from lora_drop.method.schedule import Schedule

SPAN = 256  # tokens that attention reads at least

Rope = tuple[Tensor, Tensor]  # cosines and signed sines (hs,): x * cos + roll(x, hs / 2) * sin rotates
Projection = tuple[Tensor, Tensor | None]  # weight (N, K), bias (N,)
# (1, V) logits, (n, 1, D) outputs of the skipped layers if watched, and ||d|| / ||cached|| of the corrected ones.
Results = tuple[Tensor, Tensor | None, list[Tensor]]


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


class StaticHidden(HiddenCache):
    """Vectors that keep their place: after the first, a layer's vector is written over."""

    def __setitem__(self, layer: int, vector: Tensor | None) -> None:
        held = self.vectors[layer]
        if held is None or vector is None:
            self.vectors[layer] = vector
        else:
            held.copy_(vector)


@dataclass
class StaticState(DecodeState):
    """A lane's static buffers, made by prefill, and the graphs over them.

    Args:
        tokens: the most that a layer's cache is going to hold, as far as known.
        token: (1, 1), the token to read.
        held: (2,), how many tokens the layers that always run hold (which is the position), and the dropped ones.
        rope: cosines and signed sines, (tokens, hs) each.
        masks: (1, 1, 1, S) of the two groups of layers, made anew in each step.
        graphs: by kind of step and by the two spans.
    """

    tokens: int = 0
    token: Tensor = field(init=False, repr=False)
    held: Tensor = field(init=False, repr=False)
    rope: Rope = field(init=False, repr=False)
    masks: tuple[Tensor, Tensor] = field(init=False, repr=False)
    graphs: dict[tuple[bool, int, int], Callable[[], Results]] = field(default_factory=dict, repr=False)


class StaticDecoder(ReferenceDecoder):
    """`step` for one token of one text over static buffers; prefill captures, and all else is the reference's."""

    def __init__(self, model: PreTrainedModel, weights: StaticWeights):
        super().__init__(model)
        config = model.config
        self.name = weights.decoder_name
        self._weights = weights.layers
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = self.layers[0].self_attn.head_dim
        self._intermediate, self._eps = config.intermediate_size, config.rms_norm_eps

    def new_state(
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False
    ) -> StaticState:
        """See `step.Decoder`. Without `tokens` the buffers grow, and are captured anew, by doubling."""
        n = self.num_layers
        return StaticState(schedule, bank, KVCache(n), StaticHidden(n), watch, tokens=tokens)

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`. Reserves the caches and captures the first steps too."""
        assert isinstance(state, StaticState)
        found = super().prefill(input_ids, state)
        state.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        state.held = torch.full((2,), state.position, device=self.device)
        self._reserve(state, max(state.tokens, state.position + 1))
        for lora in {False, not state.schedule.is_baseline}:
            self._graph(state, lora)
        return found

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`; token (1, 1)."""
        assert isinstance(state, StaticState)
        lora = not state.refresher.begin()
        if state.position == state.tokens:
            self._reserve(state, 2 * state.tokens)
        replay = self._graph(state, lora)
        state.token.copy_(token)
        logits, watched, ratios = replay()
        skipped = state.schedule.dropped_set if lora and state.schedule.kv == "skip" else ()
        for i in range(self.num_layers):
            state.kv.lengths[i] += i not in skipped
        state.position += 1
        # Copies: the next replay writes over what a graph gave.
        state.refresher.take(ratio.clone() for ratio in ratios)
        logits = logits.clone()
        state.refresher.end(logits)
        return DecoderOutput(logits, None if watched is None else watched.clone(), state.refresher.entropy)

    def _reserve(self, state: StaticState, tokens: int) -> None:
        """Room for `tokens` tokens; a skipped layer that writes no K/V at LoRA steps gets what its refreshes need."""
        schedule, prompt = state.schedule, state.position
        sparse = schedule.kv == "skip" and not schedule.is_adaptive
        for i in range(self.num_layers):
            need = tokens
            if sparse and i in schedule.dropped_set:
                need = state.kv.lengths[i] + (tokens - prompt) // schedule.period + 1
            filled = state.kv.lengths[i]
            # What is masked counts nothing, but nothing times NaN is NaN.
            state.kv.reserve(state.kv.store(i)[0], i, need)[:, :, :, filled:].zero_()
        positions = torch.arange(tokens, device=self.device)[None]
        cos, sin = self.rotary(self.embed.weight[:1, None], position_ids=positions)  # (1, tokens, hs)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        state.rope = cos[0].to(self.dtype), sin[0].to(self.dtype)
        state.tokens = tokens
        state.graphs.clear()  # they know the old buffers

    def _graph(self, state: StaticState, lora: bool) -> Callable[[], Results]:
        """The next step as a call without arguments."""
        dropped = state.schedule.dropped
        spans = _span(state.kv, 0), _span(state.kv, dropped[0] if dropped else 0)
        if self.device.type != "cuda":
            return lambda: self._run(state, lora, spans)
        key = (lora, *spans)
        if key not in state.graphs:
            with torch.cuda.device(self.device):
                state.graphs[key] = self._capture(state, lora, spans)
        return state.graphs[key]

    def _capture(self, state: StaticState, lora: bool, spans: tuple[int, int]) -> Callable[[], Results]:
        """Run the step once aside, as libraries set themselves up on their first call, and then capture it."""
        kept = [state.held, *(vector for vector in state.hidden.vectors if vector is not None)]
        before = [tensor.clone() for tensor in kept]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._run(state, lora, spans)
        torch.cuda.current_stream().wait_stream(aside)
        # The K/V that it wrote lie where the next token's go.
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Another visitor's thread may call CUDA meanwhile; that is no business of this capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = self._run(state, lora, spans)

        def replay() -> Results:
            graph.replay()
            return results

        return replay

    def _run(self, state: StaticState, lora: bool, spans: tuple[int, int]) -> Results:
        """One step over the static buffers: what a graph holds."""
        dropped = state.schedule.dropped_set
        h = F.embedding(state.token[:, 0], self.embed.weight)  # (1, D)
        cos, sin = (table.index_select(0, state.held[:1])[0] for table in state.rope)
        first, second = (self._mask(span, held) for span, held in zip(spans, state.held, strict=True))
        rope, state.masks = (cos, sin), (first, second)
        watched = []
        for i in range(self.num_layers):
            h = (self._lora if lora and i in dropped else self._full)(i, h, rope, state)
            if i in dropped:
                watched.append(h)
        skips = lora and state.schedule.kv == "skip"
        (state.held[:1] if skips else state.held).add_(1)
        logits = self.head(self._norm(h, self.norm.weight))
        return logits, stacked(watched, h) if state.watch else None, state.refresher.drain()

    def _mask(self, span: int, held: Tensor) -> Tensor:
        """(1, 1, 1, span), to be added to the scores: minus infinity after the token that is being read."""
        beyond = torch.arange(span, device=self.device) > held
        mask = torch.zeros(span, dtype=self.dtype, device=self.device).masked_fill_(beyond, -torch.inf)
        return mask[None, None, None]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _project(self, i: int, x: Tensor, rope: Rope) -> Tensor:
        """Queries, keys and values (nh + 2 nkv, hs) of a normed input (1, D), rotated."""
        weights = self._weights[i]
        heads = F.linear(x, *weights.qkv).view(-1, self._head_dim)
        turned = heads[: self._heads + self._kv_heads]
        if weights.qk_norm is not None:
            turned.copy_(F.rms_norm(turned, (self._head_dim,), None, self._eps).mul_(weights.qk_norm))
        cos, sin = rope
        torch.addcmul(turned * cos, turned.roll(self._head_dim // 2, -1), sin, out=turned)
        return heads

    def _write(self, i: int, heads: Tensor, state: StaticState) -> Tensor:
        """Put the token's K/V, the last of `heads`, in its place; returns what attention reads, (2, 1, nkv, S, hs)."""
        both = heads[self._heads :].view(2, 1, self._kv_heads, 1, self._head_dim)
        group = int(i in state.schedule.dropped_set)
        store = state.kv.store(i)
        store.index_copy_(3, state.held[group : group + 1], both)
        return store.narrow(3, 0, state.masks[group].shape[-1])

    def _attend(self, i: int, h: Tensor, rope: Rope, state: StaticState) -> Tensor:
        """u = h + attention; writes K/V."""
        weights = self._weights[i]
        heads = self._project(i, self._norm(h, weights.attention_norm), rope)
        keys, values = self._write(i, heads, state).unbind(0)
        # The query heads of a K/V head stand as rows of one query: no key is copied for them.
        query = heads[: self._heads].view(1, self._kv_heads, -1, self._head_dim)
        mask = state.masks[i in state.schedule.dropped_set]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return F.linear(mixed.reshape(1, -1), *weights.out).add_(h)

    def _feed(self, i: int, u: Tensor) -> Tensor:
        """u + MLP."""
        weights = self._weights[i]
        gate, up = F.linear(self._norm(u, weights.mlp_norm), *weights.gate_up).split(self._intermediate, 1)
        return F.linear(F.silu(gate).mul_(up), *weights.down).add_(u)

    def _full(self, i: int, h: Tensor, rope: Rope, state: StaticState) -> Tensor:
        """A whole layer; one that LoRA steps skip leaves its anchor behind."""
        u = self._attend(i, h, rope, state)
        out = self._feed(i, u)
        if i in state.schedule.dropped_set:
            reached = out if state.schedule.part == "block" else u
            state.hidden[i] = self._remember(state.schedule.reuse, h, reached)
        return out

    def _lora(self, i: int, h: Tensor, rope: Rope, state: StaticState) -> Tensor:
        """A skipped layer at a LoRA step: no attention, and with `part="block"` no MLP either."""
        schedule, bank = state.schedule, state.bank
        if schedule.kv == "write":
            heads = self._project(i, self._norm(h, self._weights[i].attention_norm), rope)
            self._write(i, heads, state)
        own = bank if bank is not None and i in bank.a else None
        base = h if schedule.reuse == "skip" else state.hidden[i]
        if schedule.reuse == "residual":
            base = torch.addcmul(h, own.gate[i], base) if own is not None else h + base
        u = base
        if own is not None:
            d = own.correction(i, h)
            state.refresher.measure(d, h if schedule.reuse == "skip" else state.hidden[i])
            u = base + d
        if schedule.reuse == "state":
            state.hidden[i] = u
        return u if schedule.part == "block" else self._feed(i, u)


def _span(kv: KVCache, layer: int) -> int:
    """How much of a layer's storage the next step reads: a power of two, as far as there is storage."""
    needed = max(SPAN, kv.lengths[layer] + 1)
    return min(1 << (needed - 1).bit_length(), kv.store(layer).shape[3])
