"""The decoder on a GPU: each pass, a full step, a LoRA step or a repair, is one CUDA graph over static buffers.

At batch 1 a step is hundreds of small kernels, and launching them from Python takes longer than running them. So each
kind of pass is captured once and replayed. A graph holds nothing of a generation: token, places, caches and anchors
are in buffers that all graphs of a lane share, so they may be replayed in any order. All passes that a lane can need
are captured when its state is made, before its clock starts; a later lane of the same kind takes them over.

The arithmetic of a layer is in `layers.py`, compiled if something can compile. With Triton, attention is split over
the keys (`split.py`); otherwise it is torch's over the whole capacity of a cache, with a mask.

On other devices the same passes run without graphs; the tests compare them with the reference there. Prefill is the
reference's.

Shapes: D hidden size, V vocabulary, nh heads, nkv K/V heads, hs head size, R rows of a pass, S tokens that attention
reads, n dropped layers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode import rules
from lora_drop.decode.cache import BLOCK, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.layer import causal_mask, fused, projections, qk_norms
from lora_drop.decode.reference import ReferenceDecoder, stacked
from lora_drop.decode.static.buffers import (
    IDLE_SHARE,
    SPLIT_BLOCK,
    Buffers,
    Pass,
    Results,
    StaticState,
    Store,
    Window,
    bank_key,
    bank_tensors,
    capture,
    padded,
    passes_of,
    schedule_key,
)
from lora_drop.decode.static.layers import EAGER, Functions, Norm, Pair, Projection, best_for, has_kernels, warn_of
from lora_drop.decode.step import DecoderOutput, DecodeState, Prefilled
from lora_drop.method.schedule import Schedule


@dataclass(frozen=True)
class StaticLayer:
    """One layer's weights: norms and fused projections. `qk_norm` is Qwen3's, (nh + nkv, hs), else None."""

    attention_norm: Norm
    mlp_norm: Norm
    qk_norm: Tensor | None
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection


@dataclass
class StaticWeights:
    """A model's weights with q, k, v and gate, up fused; its modules keep views, so that no weight exists twice.

    Attributes:
        decoder_name: name of the decoder that runs them.
        functions: compute the layers, compiled or not.
        split: the module `split`; None is torch's attention.
        captures: whether passes become graphs; False after a capture that failed.
        variants: what was captured, whatever room it had.
        closed: nothing but these may be compiled and captured.
        store: buffers and graphs that no lane uses now.
        stream: that captures run on; None before the first, and after one that failed.
    """

    layers: list[StaticLayer]
    decoder_name: str
    functions: Functions = EAGER
    split: ModuleType | None = None
    captures: bool = False
    variants: set[Hashable] = field(default_factory=set, repr=False)
    closed: bool = False
    store: Store = field(default_factory=Store, repr=False)
    stream: Any = field(default=None, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, is_eager: bool = False) -> StaticWeights:
        """Fuse the weights of a model that `is_supported`; eager passes have no graphs and compile nothing."""
        like = model.get_input_embeddings().weight
        name = f"static ({str(like.dtype).removeprefix('torch.')})"
        layers, eps = [], model.config.rms_norm_eps
        for layer in model.model.layers:
            matrices: Any = {kind: fused(*linears) for kind, linears in projections(layer).items()}
            attention_norm = (layer.input_layernorm.weight, eps)
            mlp_norm = (layer.post_attention_layernorm.weight, eps)
            layers.append(StaticLayer(attention_norm, mlp_norm, qk_norms(layer.self_attn), **matrices))
        if like.device.type != "cuda" or is_eager:
            return cls(layers, f"{name}, eager" if is_eager else name)
        return cls(layers, name, best_for(like.device), split_for(model), captures=True)


def split_for(model: PreTrainedModel) -> ModuleType | None:
    """The module of attention split over the keys; None without Triton, or where one step of it fails here.

    Triton builds a launcher for its kernels with a C compiler and Python.h, which it does not bring.
    """
    config: Any = model.config
    embed: Any = model.get_input_embeddings().weight
    if not has_kernels(embed.device):
        return None
    count, kv, size = config.num_attention_heads, config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
    try:
        from lora_drop.decode.static import split

        store, heads = embed.new_zeros(2, 1, kv, BLOCK, size), embed.new_zeros(1, count + 2 * kv, size)
        with torch.cuda.device_of(embed):
            split.attend(heads, store, torch.zeros(1, dtype=torch.long, device=embed.device), count).tolist()  # waits
    except Exception as error:  # a compiler that is missing or broken raises anything
        warn_of("attention cannot be split over the keys", error)
        return None
    return split


class StaticDecoder(ReferenceDecoder):
    """See `ReferenceDecoder`; `run` and what follows it are the passes, which never wait for the device."""

    def __init__(self, model: PreTrainedModel, weights: StaticWeights):
        super().__init__(model)
        config = model.config
        self.name, self.weights = weights.decoder_name, weights
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.last_norm = self.layers[0].self_attn.head_dim, (self.norm.weight, config.rms_norm_eps)
        self.runs_ahead = self.device.type == "cuda"

    def ready_for(self, lanes: Sequence[tuple[Schedule, Correction | None]]) -> StaticDecoder:
        """See `ReferenceDecoder`. What must not be compiled makes all lanes eager, so that they are alike."""
        weights = self.weights
        if not (weights.captures and weights.closed) or {variant(*lane) for lane in lanes} <= weights.variants:
            return self
        other = copy.copy(self)
        other.weights = dataclasses.replace(weights, functions=EAGER, split=None, captures=False, store=Store())
        other.name = f"{self.name}, eager"
        return other

    @torch.inference_mode()
    def new_state(
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False, prompt: int = 0
    ) -> StaticState:
        """See `ReferenceDecoder`. Without `tokens` the buffers double when full, and are captured anew."""
        state = StaticState(schedule, bank, watch, tokens=tokens, prompt=prompt)
        if prompt:
            self._allocate(state, max(tokens, prompt + 1), prompt, 0 if schedule.prunes else prompt)
        return state

    @torch.inference_mode()
    def start(self, prompt: Prefilled, state: DecodeState) -> DecoderOutput:
        """See `ReferenceDecoder`. Allocates the buffers too if the prompt's length was not known before."""
        assert isinstance(state, StaticState)
        output = super().start(prompt, state)
        if state.buffers is None or state.prompt != state.position:
            filled = state.kv.lengths[_dropped(state.schedule)]
            self._allocate(state, max(state.tokens, state.position + 1), state.position, filled)
        else:
            self._bind(state, state.buffers)
        return output

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `ReferenceDecoder`; token (1, 1)."""
        assert isinstance(state, StaticState)
        lora = not state.refresher.begin()
        return self._advance(token, state, lora, 1 if lora else len(state.pending) + 1)

    def _pending(self, h: Tensor, state: DecodeState) -> Tensor:
        """See `ReferenceDecoder`; a row (1, D) of the buffers."""
        assert isinstance(state, StaticState) and state.buffers is not None
        count = len(state.pending)
        return state.buffers.pending[count : count + 1].copy_(h[0])

    @torch.inference_mode()
    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """See `ReferenceDecoder`; all rows run in one pass."""
        assert isinstance(state, StaticState)
        return self._advance(token, state, False, len(state.pending) + (token is not None))

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """See `ReferenceDecoder`. Takes the fused weights, and torch's attention."""
        h, past = F.embedding(tokens[0], self.embed.weight), kv.lengths[0]
        rope, count = self._signed(position, len(h)), self.heads + self.kv_heads
        mask, is_causal = causal_mask(len(h), past, self.device), not past and len(h) > 1
        outputs = []
        for i, weights in enumerate(self.weights.layers):
            heads = EAGER.project(h, weights.attention_norm, weights.qkv, weights.qk_norm, rope, count)
            query, key, value = heads.transpose(0, 1)[None].split((self.heads, self.kv_heads, self.kv_heads), 1)
            keys, values = kv.update(key, value, i)
            mixed = F.scaled_dot_product_attention(query, keys, values, mask, is_causal=is_causal, enable_gqa=True)
            u = EAGER.close(mixed[0].transpose(0, 1).flatten(1), h, weights.out)
            h = EAGER.feed(u, weights.mlp_norm, weights.gate_up, weights.down)
            if i in layers:
                outputs.append(h[None])
        logits = EAGER.head(h[logits_from:], self.last_norm, self.head.weight)
        return DecoderOutput(logits[None], stacked(outputs, h[None]))

    def _advance(self, token: Tensor | None, state: StaticState, lora: bool, rows: int) -> DecoderOutput:
        """Run a pass, and count the tokens that it has read and written."""
        reads, schedule = token is not None, state.schedule
        if state.position + reads > state.tokens:
            self._allocate(state, 2 * state.tokens, state.position, state.kv.lengths[_dropped(schedule)])
        buffers = state.buffers
        assert buffers is not None and state.kv.stores[0] is buffers.stores[0]  # the memory that the graphs know
        each = Pass(lora, padded(rows))
        with self._here():
            if token is not None:
                buffers.token.copy_(token)
            before = len(state.pending) if lora else rows - 1
            buffers.place(state.position + reads - 1, state.kv.lengths[_dropped(schedule)], before)
            # The pass over the last drafts comes once in a lane and has no graph.
            replay = buffers.graphs.get(each) if reads else None
            results = replay() if replay else self.run(state, each, reads)
        grown = rows if schedule.kv == "write" else 1
        if lora and (schedule.kv == "skip" or schedule.repairs):
            grown = 0
        for i in range(self.num_layers):
            state.kv.lengths[i] += grown if i in schedule.dropped_set else reads
        state.position += reads
        count = len(state.pending)
        state.pending = [*state.pending, buffers.pending[count : count + 1]] if lora and schedule.repairs else []
        state.row_anchors = results.row_anchors
        # Copies, as the next replay overwrites them. Padding rows are left out.
        unpadded = slice(rows) if schedule.verifies else slice(None)
        logits, choice = results.logits[unpadded].clone(), results.choice[unpadded].clone()
        nats = results.entropy[-1:].clone()
        watched = None if results.watched is None else results.watched[:, unpadded].clone()
        state.refresher.end(logits[-1:], float(nats) if schedule.is_adaptive else None)
        return DecoderOutput(logits, watched, nats, rows, choice)

    def _here(self) -> contextlib.AbstractContextManager[Any]:
        """Make the decoder's device the current one, which it need not be with two GPUs."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _allocate(self, state: StaticState, tokens: int, position: int, filled: int) -> None:
        """Give a state buffers for `tokens` tokens, and copy to them what it holds.

        Args:
            position: tokens read when the buffers are first used.
            filled: how many of these the dropped layers hold.
        """
        schedule = state.schedule
        rooms = {False: tokens, True: tokens}
        if schedule.kv == "skip" and not schedule.is_adaptive:  # a skipped layer needs room for refreshes only
            beside = schedule.period - 1 if schedule.repairs else 0  # rows of a repair that are cut after it
            often = [every for every in (schedule.period, schedule.refresh_position) if every]
            refreshes = sum((tokens - position) // every + 1 for every in often)
            rooms[True] = min(tokens, filled + refreshes + beside)
        block = BLOCK if self.weights.split is None else SPLIT_BLOCK
        rooms = {dropped: -(-room // block) * block for dropped, room in rooms.items()}
        store = self.weights.store
        key = variant(schedule, state.bank), *rooms.values(), state.watch
        if state.give_back is not None:
            state.give_back()
        with self._here():
            buffers = store.take(key) if self.weights.captures else None
            if buffers is None:
                buffers = self._make(state, rooms)
            elif state.bank is not None and buffers.bank is not None:
                for tensor, source in zip(bank_tensors(buffers.bank), bank_tensors(state.bank), strict=True):
                    tensor.copy_(source)
            buffers.blank()
            if self.device.type == "cuda":  # elsewhere a few buffers are never too many
                store.trim(torch.cuda.get_device_properties(self.device).total_memory // IDLE_SHARE)
            self._bind(state, buffers)
        state.tokens, state.prompt = tokens, position
        if self.weights.captures:
            state.give_back = weakref.finalize(state, store.append, (key, buffers))
            state.give_back.atexit = False

    def _bind(self, state: StaticState, buffers: Buffers) -> None:
        """Copy a state's K/V, anchors and pending rows to buffers, and keep them there from now on."""
        for i, store in enumerate(buffers.stores):
            old, filled = state.kv.stores[i], state.kv.lengths[i]
            if old is not None and old is not store:
                store[:, :, :, :filled] = old[:, :, :, :filled]
            state.kv.stores[i] = store
            state.anchors.bind(i, buffers.anchors[i])
        for at, row in enumerate(state.pending):
            buffers.pending[at : at + 1] = row
        state.pending = [buffers.pending[at : at + 1] for at in range(len(state.pending))]
        state.bank, state.buffers = buffers.bank, buffers

    def _make(self, state: StaticState, rooms: dict[bool, int]) -> Buffers:
        """Make buffers for a state, with the graphs of all its passes; if memory is short, drop idle buffers first."""
        try:
            return self._captured(self._blank(state, rooms), state)
        except torch.OutOfMemoryError:
            self.weights.store.clear()
            torch.cuda.empty_cache()
        return self._captured(self._blank(state, rooms), state)

    def _blank(self, state: StaticState, rooms: dict[bool, int]) -> Buffers:
        """Make buffers with room for `rooms[dropped]` tokens in each layer."""
        schedule, bank, size = state.schedule, state.bank, self.embed.weight.shape[1]
        if bank is not None and self.weights.captures:
            bank = copy.deepcopy(bank)
        new = partial(torch.zeros, dtype=self.dtype, device=self.device)
        whole = partial(torch.zeros, dtype=torch.long, device=self.device)
        anchored = schedule.dropped_set if schedule.reuse != "skip" else frozenset()
        layers = range(self.num_layers)
        return Buffers(
            [new(2, 1, self.kv_heads, rooms[i in schedule.dropped_set], self.head_dim) for i in layers],
            [new(1, size) if i in anchored else None for i in layers],
            whole(1, 1),
            whole(3),
            new(padded(schedule.period) if schedule.repairs else 0, size),
            self._signed(0, rooms[False]),
            bank,
        )

    def _signed(self, position: int, tokens: int) -> Pair:
        """Cosines and signed sines (tokens, 1, hs) of the positions from `position` on."""
        positions = torch.arange(position, position + tokens, device=self.device)[None]
        cos, sin = self.rotary(self.embed.weight[:1, None], position_ids=positions)  # (1, tokens, hs)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        return cos[0, :, None].to(self.dtype), sin[0, :, None].to(self.dtype)

    def _captured(self, buffers: Buffers, like: StaticState) -> Buffers:
        """Capture the graphs of buffers; without any, and with a warning, if a capture fails."""
        if not self.weights.captures:
            return buffers
        state = StaticState(like.schedule, None, like.watch)
        self._bind(state, buffers)
        pool = torch.cuda.graph_pool_handle()
        for each in passes_of(like.schedule):
            try:
                buffers.graphs[each], grown = self._capture(state, each, pool)
                buffers.graph_bytes += grown
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler raises anything
                warn_of("a CUDA graph could not be captured", error)
                self.weights.captures = False
                buffers.graphs.clear()
                break
        else:
            self.weights.variants.add(variant(like.schedule, buffers.bank))
        return buffers

    def _capture(self, state: StaticState, each: Pass, pool: Any) -> tuple[Callable[[], Results], int]:
        """Capture a pass; where it fails, without the compiled functions, and then without split attention, for good.

        Both ran when they were chosen, so this is about a shape or a kind of pass that fails alone.
        """
        run, weights = partial(self.run, state, each), self.weights
        while True:
            weights.stream = weights.stream or torch.cuda.Stream(self.device)
            try:
                return capture(run, self.device, pool, weights.stream)
            except Exception as error:  # a compiler raises anything
                weights.stream = None
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                if weights.functions is not EAGER:
                    warn_of("the compiled layers failed", error)
                    weights.functions = EAGER
                elif weights.split is not None:
                    warn_of("attention split over the keys failed", error)
                    weights.split = None
                else:
                    raise

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
        for i in range(first, self.num_layers):
            skipped = i in schedule.dropped_set
            h = (self._lora if each.lora and skipped else self._full)(i, h, window, state)
            if skipped:
                watched.append(h[wanted])
        h = h[wanted]
        logits = self._logits(h, state, each.lora)
        seen = stacked(watched, h) if state.watch else None
        return Results(logits, *self.weights.functions.choose(logits), seen, state.row_anchors)

    def _logits(self, h: Tensor, state: StaticState, lora: bool) -> Tensor:
        screen = state.screened_head if lora else None
        if screen is not None:
            return screen.logits(self.norm(h), self.head.weight)
        return self.weights.functions.head(h, self.last_norm, self.head.weight)

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
        """Mask (1, 1, R nh / nkv, S) to add to the scores: minus infinity after a row's place."""
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

    def _project(self, i: int, h: Tensor, rope: Pair) -> Tensor:
        """Rotated queries and keys, and values, (R, nh + 2 nkv, hs), of a layer's inputs (R, D)."""
        layer, count = self.weights.layers[i], self.heads + self.kv_heads
        return self.weights.functions.project(h, layer.attention_norm, layer.qkv, layer.qk_norm, rope, count)

    def _write(self, i: int, heads: Tensor, window: Window, state: StaticState) -> Tensor:
        """Write the rows' K/V, the last of `heads`, to their places; return them, (2, 1, nkv, R, hs)."""
        both: Tensor = heads[:, self.heads :].unflatten(1, (2, 1, self.kv_heads)).permute(1, 2, 3, 0, 4)
        if window.rows is not None:  # padding rows write the last row's K/V
            both = both.index_select(3, window.rows)
        state.kv.store(i).index_copy_(3, window.places[i in state.schedule.dropped_set], both)
        return both

    def _attend(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """u = h + attention, (R, D). Writes K/V."""
        rows, dropped, store = len(h), i in state.schedule.dropped_set, state.kv.store(i)
        heads = self._project(i, h, window.rope)
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
        return self.weights.functions.close(mixed, h, self.weights.layers[i].out)

    def _feed(self, i: int, u: Tensor) -> Tensor:
        """u + MLP."""
        layer = self.weights.layers[i]
        return self.weights.functions.feed(u, layer.mlp_norm, layer.gate_up, layer.down)

    def _full(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """A whole layer, (R, D); a layer of the schedule leaves its anchor."""
        u = self._attend(i, h, window, state)
        output = self._feed(i, u)
        schedule = state.schedule
        if i in schedule.dropped_set:
            anchors = rules.anchor_of(schedule.reuse, h, rules.replaced(schedule.part, u, output))  # (R, D)
            state.anchors[i] = None if anchors is None else anchors[-1:]
            if schedule.verifies:
                state.row_anchors[i] = [None] * len(h) if anchors is None else list(anchors.split(1))
        return output

    def _lora(self, i: int, h: Tensor, window: Window, state: StaticState) -> Tensor:
        """A skipped layer at a LoRA step, (1, D): no attention, and with `part="block"` no MLP either."""
        schedule, bank = state.schedule, state.bank
        if schedule.kv == "write" and not schedule.repairs:
            self._write(i, self._project(i, h, window.rope), window, state)
        anchor: Tensor | None = state.anchors[i]
        correction: tuple[Any, ...] = ()
        if bank is not None and i in bank.a:
            correction = bank.gate[i], (bank.a[i], bank.b[i], bank.scale)
        u = self.weights.functions.skip(h, anchor, schedule.reuse, *correction)
        if schedule.reuse == "state":
            state.anchors[i] = u
        return u if schedule.part == "block" else self._feed(i, u)


def variant(schedule: Schedule, bank: Correction | None) -> Hashable:
    """What compiled functions and graphs depend on, beside the room in the caches."""
    return schedule_key(schedule), bank_key(bank)


def _dropped(schedule: Schedule) -> int:
    """Any dropped layer: all of them cache the same number of tokens."""
    return schedule.dropped[0] if schedule.dropped else 0
