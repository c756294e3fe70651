"""The fast decoder on a GPU: a decode step is one CUDA graph, a full one or a LoRA one, over static buffers.

At batch 1 a step is hundreds of small kernels, and launching them one by one from Python costs more than they do. So
each kind of step is captured once and replayed. Nothing of a generation is inside a graph: token, positions, caches
and anchors are in buffers of the lane's state, which all its graphs share, so they may be replayed in any order.

Attention reads a span of the cache that grows by doubling, with a mask for what is not filled yet; each span has
graphs of its own, captured when it is first met. The first ones belong to prefill, on the clock of the first token.

On other devices the very same step runs without a graph; the tests hold it against the reference there.

Shapes: D hidden size, nkv K/V heads, hs head size, V vocabulary, n dropped layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.fast import FastDecoder
from lora_drop.decode.step import DecodeState
from lora_drop.method.schedule import Schedule

SPAN = 256  # tokens that attention reads at least

# (1, V) logits, n x (1, D) outputs of the dropped layers, and ||d|| / ||cached|| of the corrected ones.
Results = tuple[Tensor, list[Tensor], list[Tensor]]


class StaticHidden(HiddenCache):
    """Vectors that keep their place: after the first, a layer's vector is written over."""

    def __setitem__(self, layer: int, vector: Tensor | None) -> None:
        if self.vectors[layer] is None:
            self.vectors[layer] = vector
        else:
            self.vectors[layer].copy_(vector)


@dataclass
class GraphState(DecodeState):
    """A lane's static buffers, and the graphs over them.

    Args:
        tokens: the most that a layer's cache is going to hold, as far as known.
        token: (1, 1), the token to read.
        held: (2,), how many tokens the layers that always run hold (which is the position), and the dropped ones.
        rope: cosines and signed sines, (tokens, hs) each.
        graphs: by kind of step and by the two spans.
    """

    tokens: int = 0
    token: Tensor | None = None
    held: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None
    masks: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    graphs: dict[tuple[bool, int, int], Callable[[], Results]] = field(default_factory=dict, repr=False)


class GraphDecoder(FastDecoder):
    """`FastDecoder` whose steps are graphs on CUDA."""

    def __init__(self, model, weights):
        super().__init__(model, weights)
        self.name = f"fast ({weights.kind}, CUDA graphs)"

    def new_state(self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0) -> GraphState:
        """See `Decoder.new_state`."""
        n = len(self.layers)
        return GraphState(schedule, bank, KVCache(n), StaticHidden(n), tokens=tokens)

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, state: GraphState) -> Tensor:
        """See `Decoder.prefill`. Reserves the caches and captures the first steps too."""
        logits = super().prefill(input_ids, state)
        state.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        state.held = torch.full((2,), state.position, device=self.device)
        self._reserve(state, max(state.tokens, state.position + 1))
        for lora in {False, not state.schedule.is_baseline}:
            self._graph(state, lora)
        return logits

    @torch.inference_mode()
    def step(self, token: Tensor, state: GraphState, watch: list[Tensor] | None = None) -> Tensor:
        """Decode one token (1, 1). Returns logits (1, V); see `Decoder.step`."""
        lora = not state.refresher.begin()
        if state.position == state.tokens:
            self._reserve(state, 2 * state.tokens)
        replay = self._graph(state, lora)
        state.token.copy_(token)
        logits, watched, ratios = replay()
        resting = state.schedule.dropped_set if lora and state.schedule.kv == "skip" else ()
        for i in range(len(self.layers)):
            state.kv.lengths[i] += i not in resting
        state.position += 1
        # Copies: the next replay writes over what a graph gave.
        if watch is not None:
            watch.extend(h.clone() for h in watched)
        state.refresher.take(ratio.clone() for ratio in ratios)
        logits = logits.clone()
        state.refresher.end(logits)
        return logits

    def _reserve(self, state: GraphState, tokens: int) -> None:
        """Room for `tokens` tokens: a dropped layer that rests at LoRA steps gets only what its refreshes need."""
        schedule, prompt = state.schedule, state.position
        sparse = schedule.kv == "skip" and not schedule.is_adaptive
        for i, store in enumerate(state.kv.stores):
            need = tokens
            if sparse and i in schedule.dropped_set:
                need = state.kv.lengths[i] + (tokens - prompt) // schedule.period + 1
            filled = state.kv.lengths[i]
            # What is masked counts nothing, but nothing times NaN is NaN.
            state.kv.reserve(store[0], i, need)[:, :, :, filled:].zero_()
        positions = torch.arange(tokens, device=self.device)[None]
        cos, sin = self.rotary(self.embed.weight[:1, None], position_ids=positions)  # (1, tokens, hs)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        state.rope = cos[0].to(self.weights.dtype), sin[0].to(self.weights.dtype)
        state.tokens = tokens
        state.graphs.clear()  # they know the old buffers

    def _graph(self, state: GraphState, lora: bool) -> Callable[[], Results]:
        """The next step as a call without arguments."""
        dropped = state.schedule.dropped
        spans = tuple(_span(state.kv, i) for i in (0, dropped[0] if dropped else 0))
        if self.device.type != "cuda":
            return lambda: self._run(state, lora, spans)
        key = (lora, *spans)
        if key not in state.graphs:
            with torch.cuda.device(self.device):
                state.graphs[key] = self._capture(state, lora, spans)
        return state.graphs[key]

    def _capture(self, state: GraphState, lora: bool, spans: tuple[int, int]) -> Callable[[], Results]:
        """Run the step once aside, as libraries set themselves up on their first call, and then capture it."""
        kept = [tensor for tensor in (state.held, *state.hidden.vectors) if tensor is not None]
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

    def _run(self, state: GraphState, lora: bool, spans: tuple[int, int]) -> Results:
        """One step over the static buffers: what a graph holds."""
        dropped = state.schedule.dropped_set
        h = F.embedding(state.token[:, 0], self.embed.weight)  # (1, D)
        rope = tuple(table.index_select(0, state.held[:1])[0] for table in state.rope)
        state.masks = tuple(self._mask(span, held) for span, held in zip(spans, state.held, strict=True))
        watched = []
        for i in range(len(self.layers)):
            if i not in dropped:
                h = self._full(i, h, rope, state)
                continue
            h = self._lora(i, h, rope, state) if lora else self._refresh(i, h, rope, state)
            watched.append(h)
        rests = lora and state.schedule.kv == "skip"
        (state.held[:1] if rests else state.held).add_(1)
        return self.weights.head(self._norm(h, self.norm.weight)), watched, state.refresher.drain()

    def _mask(self, span: int, held: Tensor) -> Tensor:
        """(1, 1, 1, span), to be added to the scores: minus infinity after the token that is being read."""
        beyond = torch.arange(span, device=self.device) > held
        return torch.zeros(span, dtype=self.weights.dtype, device=self.device).masked_fill_(beyond, -torch.inf)[
            None, None, None
        ]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _write(self, i: int, heads: Tensor, state: GraphState) -> Tensor:
        both = heads[self._heads :].view(2, 1, self._kv_heads, 1, self._head_dim)
        group = int(i in state.schedule.dropped_set)
        state.kv.stores[i].index_copy_(3, state.held[group : group + 1], both)
        return state.kv.stores[i].narrow(3, 0, state.masks[group].shape[-1])

    def _mix(self, i: int, query: Tensor, held: Tensor, state: GraphState) -> Tensor:
        mask = state.masks[i in state.schedule.dropped_set]
        return F.scaled_dot_product_attention(query, *held.unbind(0), attn_mask=mask)


def _span(kv: KVCache, layer: int) -> int:
    """How much of a layer's storage the next step reads: a power of two, as far as there is storage."""
    needed = max(SPAN, kv.lengths[layer] + 1)
    return min(1 << (needed - 1).bit_length(), kv.stores[layer].shape[3])
