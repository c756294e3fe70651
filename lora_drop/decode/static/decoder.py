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
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_drop.decode.cache import BLOCK, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.reference import stacked
from lora_drop.decode.static.buffers import (
    IDLE_SHARE,
    Buffers,
    Pass,
    Results,
    StaticState,
    bank_key,
    bank_tensors,
    capture,
    copied,
    padded,
    passes_of,
)
from lora_drop.decode.static.layers import EAGER, Pair, warn_of
from lora_drop.decode.static.passes import StaticPasses, StaticWeights
from lora_drop.decode.step import DecoderOutput, DecodeState, Prefilled
from lora_drop.method.schedule import Schedule

__all__ = ["StaticDecoder", "StaticWeights"]


class StaticDecoder(StaticPasses):
    """See `step.Decoder`."""

    @torch.inference_mode()
    def new_state(
        self,
        schedule: Schedule,
        bank: Correction | None = None,
        tokens: int = 0,
        watch: bool = False,
        prompt: int = 0,
    ) -> StaticState:
        """See `step.Decoder`. Without `tokens` the buffers grow by doubling, and their passes are captured anew."""
        state = StaticState(schedule, bank, watch, tokens=tokens, prompt=prompt)
        if prompt:
            self._allocate(state, max(tokens, prompt + 1), prompt, prompt)
        return state

    @torch.inference_mode()
    def start(self, prompt: Prefilled, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`. Allocates the buffers too if the prompt's length was not known before."""
        assert isinstance(state, StaticState)
        output = super().start(prompt, state)
        if state.buffers is None or state.prompt != state.position:
            self._allocate(state, max(state.tokens, state.position + 1), state.position, state.position)
        else:
            self._bind(state, state.buffers)
        return output

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`; token (1, 1)."""
        assert isinstance(state, StaticState)
        lora = not state.refresher.begin()
        return self._advance(token, state, lora, 1 if lora else len(state.pending) + 1)

    @torch.inference_mode()
    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`; all rows run in one pass."""
        assert isinstance(state, StaticState)
        return self._advance(token, state, False, len(state.pending) + (token is not None))

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """See `step.Decoder`. Takes the fused weights, and torch's attention."""
        h, past = F.embedding(tokens[0], self.embed.weight), kv.lengths[0]
        rope, count = self._signed(position, len(h)), self.heads + self.kv_heads
        mask = None
        if past and len(h) > 1:
            rows = torch.arange(past, past + len(h), device=self.device)
            mask = torch.arange(past + len(h), device=self.device) <= rows[:, None]
        outputs = []
        for i, weights in enumerate(self.weights.layers):
            heads = EAGER.project(h, weights.attention_norm, weights.qkv, weights.qk_norm, rope, count, self.eps)
            query, key, value = heads.transpose(0, 1)[None].split((self.heads, self.kv_heads, self.kv_heads), 1)
            keys, values = kv.update(key, value, i)
            mixed = F.scaled_dot_product_attention(
                query, keys, values, mask, is_causal=not past and len(h) > 1, enable_gqa=True
            )
            u = EAGER.close(mixed[0].transpose(0, 1).flatten(1), h, weights.out)
            h = EAGER.feed(u, weights.mlp_norm, weights.gate_up, weights.down, self.eps)
            if i in layers:
                outputs.append(h[None])
        logits = EAGER.head(h[logits_from:], self.norm.weight, self.head.weight, self.eps)
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
        state.refresher.take(results.ratios)
        # Copies, as the next replay overwrites them. Padding rows are left out.
        own = slice(rows) if schedule.verifies else slice(None)
        logits, choice, nats = results.logits[own].clone(), results.choice[own].clone(), results.entropy[-1:].clone()
        watched = None if results.watched is None else results.watched[:, own].clone()
        state.refresher.end(logits[-1:], float(nats) if schedule.watches_entropy else None)
        return DecoderOutput(logits, watched, nats, rows, choice)

    def _here(self) -> contextlib.AbstractContextManager:
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
            rooms[True] = min(tokens, filled + (tokens - position) // schedule.period + 1 + beside)
        rooms = {dropped: -(-room // BLOCK) * BLOCK for dropped, room in rooms.items()}
        store, key = self.weights.store, (schedule, *rooms.values(), state.watch, bank_key(state.bank))
        if state.give_back is not None:
            state.give_back()
        with self._here():
            buffers = store.take(key) if self.weights.captures else None
            if buffers is None:
                buffers = self._make(state, rooms)
            elif state.bank is not None and buffers.bank is not None:
                for own, theirs in zip(bank_tensors(buffers.bank), bank_tensors(state.bank), strict=True):
                    own.copy_(theirs)
            buffers.blank()
            store.trim(self._idle_bytes())
            self._bind(state, buffers)
        state.tokens, state.prompt = tokens, position
        if self.weights.captures:
            state.give_back = weakref.finalize(state, store.give_back, key, buffers)
            state.give_back.atexit = False

    def _idle_bytes(self) -> int:
        """Most bytes of idle buffers together."""
        if self.device.type != "cuda":
            return sys.maxsize
        return torch.cuda.get_device_properties(self.device).total_memory // IDLE_SHARE

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
            bank = copied(bank)
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
                buffers.graphs[each] = self._capture(state, each, pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warn_of("a CUDA graph could not be captured", error)
                self.weights.captures = False
                buffers.graphs.clear()
                break
        return buffers

    def _capture(self, state: StaticState, each: Pass, pool: Any) -> Callable[[], Results]:
        """Capture a pass; if the compiled functions fail, with the plain ones, for all passes from now on."""
        run = partial(self.run, state, each)
        try:
            return capture(run, self.device, pool)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler raises anything
            if self.weights.functions is EAGER:
                raise
            warn_of("the compiled layers failed", error)
            self.weights.functions = EAGER
        return capture(run, self.device, pool)


def _dropped(schedule: Schedule) -> int:
    """Any dropped layer: all of them cache the same number of tokens."""
    return schedule.dropped[0] if schedule.dropped else 0
