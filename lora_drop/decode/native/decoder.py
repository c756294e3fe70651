"""The native decoder: steps and passes in C, on a CPU.

The model's own modules read a prompt, with its attention in C; of a model without numbers (`models.gguf`) the C steps
do, in chunks. Activations of steps are float32 whatever the model's number type; K/V have the model's. A test
compares each rule, part, kv rule and architecture with the reference.

Shapes: D hidden size, hs head size, V vocabulary, n skipped layers; rows: tokens that one pass runs together.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.layer import Rope, feed, heads
from lora_drop.decode.native.plan import Head, NativeScreen, NativeState, store_of
from lora_drop.decode.native.structs import Ends, Layer, Plan, Step, Store
from lora_drop.decode.native.weights import NativeWeights, TimedLibrary, compiled, dense
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.step import DecoderOutput, DecodeState
from lora_drop.method.schedule import REUSE_RULES, Schedule

ROPE_BLOCK = 256  # positions whose cosines and sines are computed together
LARGEST_HEAD = 256  # head size whose attention to a prompt is in C
MOST_ROWS = 64  # of a pass: the longest period with repair
READ_ROWS = 16  # of a given text that run in one pass


class NativeDecoder(ReferenceDecoder):
    """See `ReferenceDecoder`. Rows that run together give, to the bit, what each gives alone."""

    def __init__(self, model: PreTrainedModel, weights: NativeWeights):
        super().__init__(model)
        self.name, self.device = weights.decoder_name, torch.device("cpu")
        self._weights, self._vocabulary, self._hidden_size = weights, weights.head.n, self.embed.embedding_dim
        self._embedding, self._norm = self.embed.weight.detach().contiguous(), self.norm.weight.detach().float()
        self._ends = Ends(
            embed=dense(self._embedding),
            head=weights.head,
            norm=self._norm.data_ptr(),
            eps=model.config.rms_norm_eps,
        )
        self._ends_at, self._layers_at = ctypes.addressof(self._ends), ctypes.addressof(weights.layers)
        native = compiled()
        self._library, self.kernels = TimedLibrary(native), native.about
        self._library.ld_threads(torch.get_num_threads())
        self._rope_blocks: dict[int, tuple[Tensor, Tensor]] = {}  # by the positions' block
        self._screen: NativeScreen | None = None  # of the last screened head, for the next lane

    @property
    def kernel_ms(self) -> float:
        """See `ReferenceDecoder`."""
        return self._library.ms

    def new_state(
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False, prompt: int = 0
    ) -> NativeState:
        """See `ReferenceDecoder`."""
        state = NativeState(schedule, bank, watch, packs=self._weights.packs_parts)
        if (head := state.screened_head) is not None:
            if self._screen is None or self._screen.head is not head:
                self._screen = NativeScreen(head, self._weights)
            state.screen = self._screen
        return state

    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `ReferenceDecoder`; token (1, 1), logits in float32."""
        assert isinstance(state, NativeState)
        lora, schedule = not state.refresher.begin(), state.schedule
        if not lora and schedule.repairs:
            return self.repair(token, state)
        state.begin(self._hidden_size)
        n, pending, entered = len(schedule.dropped), len(state.pending), None
        if schedule.repairs:
            entered = state.rows[pending]
            state.pending.append(entered)
            pending += 1
        watched = torch.empty(n, 1, self._hidden_size) if state.watch else None
        head = Head(1, self._vocabulary, state.screen if lora else None, schedule.is_adaptive)
        self._run(
            state,
            range(self.num_layers),
            state.rows[pending],
            position=state.position,
            lora=lora,
            token=token,
            head=head,
            entered=entered,
            watched=watched,
        )
        state.position += 1
        return self._output(state, head, watched)

    def _layer(self, i: int, h: Tensor, rope: Rope, kv: KVCache) -> tuple[Tensor, Tensor]:
        """See `ReferenceDecoder`: a layer on a part of a prompt, (1, T, D), with its attention in C."""
        if self.embed.weight.is_meta:
            return self._layer_by_steps(i, h, kv)
        layer = self.layers[i]
        if len(h) > 1 or layer.self_attn.head_dim > LARGEST_HEAD:
            return super()._layer(i, h, rope, kv)
        query, key, value = heads(layer, h, rope)
        kv.update(key, value, i)
        query = query.transpose(1, 2).contiguous()  # (1, T, nh, hs)
        mixed, store = torch.empty_like(query), kv.store(i)
        view = store_of(store, kv.lengths[i])
        at = self._layers_at + i * ctypes.sizeof(Layer)
        self._library.ld_prompt(at, ctypes.addressof(view), h.shape[1], query.data_ptr(), mixed.data_ptr())
        u = h + layer.self_attn.o_proj(mixed.flatten(2))
        return u, feed(layer, u)

    def _layer_by_steps(self, i: int, h: Tensor, kv: KVCache) -> tuple[Tensor, Tensor]:
        """The same without the module's numbers. Row by row it equals, to the bit, the layer in a full step."""
        layer, rows = self._weights.layers[i], h[0].clone()
        like = torch.empty(1, layer.kv_heads, 0, layer.head_dim, dtype=self.dtype)
        store = store_of(kv.reserve(like, i, kv.lengths[i] + len(rows)), kv.lengths[i])
        attended = torch.empty_like(rows)
        for part, anchors in zip(rows.split(READ_ROWS), attended.split(READ_ROWS), strict=True):
            # The anchor of a skipped attention is the stream after it.
            plan = Plan(drops=1, hidden=anchors.data_ptr())
            step = Step(rows=len(part), rule=REUSE_RULES.index("anchor"), attention_only=True)
            at = [self._layers_at + i * ctypes.sizeof(Layer), ctypes.addressof(plan), 1, ctypes.addressof(step)]
            cos_sin = self._rope_at(store.length)
            self._library.ld_step(self._ends_at, *at, *cos_sin, ctypes.addressof(store), part.data_ptr(), None)
        kv.lengths[i] = store.length
        return attended[None], rows[None]

    def _prefill_logits(self, h: Tensor) -> Tensor:
        """See `ReferenceDecoder`."""
        if not self.embed.weight.is_meta:
            return super()._prefill_logits(h)
        logits: Tensor = self._logits(h.flatten(0, -2).contiguous()).unflatten(0, h.shape[:-1])
        return logits

    def _pending(self, h: Tensor, state: DecodeState) -> Tensor:
        """See `ReferenceDecoder`; a row of the memory that the pass runs in."""
        assert isinstance(state, NativeState)
        state.begin(self._hidden_size)
        return state.rows[len(state.pending)].copy_(h[0])

    @torch.inference_mode()
    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """See `ReferenceDecoder`."""
        assert isinstance(state, NativeState)
        state.begin(self._hidden_size)
        schedule, first, rows = state.schedule, state.first, len(state.pending)
        forgets, state.pending, state.drafted = rows - state.drafted, [], 0
        if token is not None:
            rows += 1
            state.position += 1
        watched = torch.empty(len(schedule.dropped), rows, self._hidden_size) if state.watch else None
        layers = range(first if token is None else 0, self.num_layers)
        head = Head(rows if schedule.verifies else 1, self._vocabulary, entropy=schedule.is_adaptive)
        h, position = state.inputs[:rows], state.position - rows
        self._run(state, layers, h, position=position, token=token, forgets=forgets, head=head, watched=watched)
        if watched is not None and not schedule.verifies:
            watched = watched[:, -1:]
        state.held = rows - 1
        if schedule.kv == "skip":
            for i in schedule.dropped:
                state.kv.keep_last(i, rows)
            state.recount()
        return self._output(state, head, watched, rows)

    @torch.inference_mode()
    def rewind(self, output: DecoderOutput, rows: int, state: DecodeState) -> DecoderOutput:
        """See `ReferenceDecoder`."""
        assert isinstance(state, NativeState)
        taken = super().rewind(output, rows, state)
        state.recount()
        state.held = rows - 1
        return taken

    def entropy(self, logits: Tensor) -> float:
        """See `ReferenceDecoder`."""
        if logits.dtype != torch.float32:  # prefill's
            return super().entropy(logits)
        nats: float = self._library.ld_entropy(logits.data_ptr(), self._vocabulary)
        return nats

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """See `ReferenceDecoder`.

        Tokens before `logits_from` are read as a prompt, the others with the arithmetic of a lane's steps, so that the
        two differ by LoRA-Drop alone.
        """
        outputs, logits, start = [], [], 0
        if not kv.lengths[0]:
            start = logits_from + 1
            prompt = super().read(tokens[:, :start], kv, position, layers, logits_from)
            assert prompt.watched is not None
            outputs, logits = [prompt.watched.float()], [prompt.logits.float()]
        state = self.new_state(Schedule(1, self.num_layers, layers, reuse="skip"))
        state.kv = kv
        state.begin(self._hidden_size)
        for at in range(start, tokens.shape[1], READ_ROWS):
            h = self._embedded(tokens[:, at : at + READ_ROWS])
            outputs.append(torch.empty(len(layers), 1, *h.shape))
            self._run(state, range(self.num_layers), h, position=position + at, watched=outputs[-1])
            if at + len(h) > logits_from:
                logits.append(self._logits(h[max(0, logits_from - at) :])[None])
        return DecoderOutput(torch.cat(logits, 1), torch.cat(outputs, 2))

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Embeddings (rows, D) of tokens (1, rows); a copy, which `ld_step` overwrites."""
        rows: Tensor = self.embed(tokens)[0].float()
        return rows

    def _run(
        self,
        state: NativeState,
        layers: range,
        h: Tensor,
        *,
        position: int,
        lora: bool = False,
        token: Tensor | None = None,
        forgets: int = 0,
        head: Head | None = None,
        entered: Tensor | None = None,
        watched: Tensor | None = None,
    ) -> None:
        """Run some layers on h (rows, D), in place, for the tokens from `position` on.

        Args:
            layers: in a repair, those before the first skipped layer run for the last token alone: the pending tokens
                have passed them.
            lora: run a LoRA step.
            token: (1, 1), whose embedding becomes the last row; None if h has it.
            forgets: tokens to drop first from the caches of the layers from the first skipped one on, where LoRA steps
                wrote them.
            head: to fill, for the last of the rows.
            entered: to fill with the input of the first skipped layer, (1, D).
            watched: to fill with the skipped layers' outputs, (n, rows, D).
        """
        schedule, bank, start, rows = state.schedule, state.bank, layers.start, h.shape[0]
        narrow = max(0, min(state.first - start, len(layers)))
        writes = schedule.kv == "write" and not schedule.repairs  # at LoRA steps; a repair writes them otherwise
        state.make_room(layers[:narrow], 1, False)
        state.make_room(layers[narrow:], rows, lora and not writes, forgets)
        if token is not None and self.embed.weight.is_meta:
            h[-1:], token = self._embedded(token), None
        step = Step(
            rows=rows,
            lora=lora,
            rule=REUSE_RULES.index(schedule.reuse),
            attention_only=schedule.part == "attention",
            write_kv=writes,
            narrow=narrow,
            held=state.held,
            forgets=forgets,
            scale=bank.alpha / bank.rank if bank and bank.rank else 0.0,
            token=_address(token),
            entered=_address(entered),
            watched=_address(watched),
        )
        cos, sin = self._rope_at(position)
        assert state.stores is not None  # `begin` came first
        self._library.ld_step(
            self._ends_at,
            self._layers_at + start * ctypes.sizeof(Layer),
            ctypes.addressof(state.plan) + start * ctypes.sizeof(Plan),
            len(layers),
            ctypes.addressof(step),
            cos,
            sin,
            ctypes.addressof(state.stores) + start * ctypes.sizeof(Store),
            h.data_ptr(),
            head and head.address,
        )

    def _logits(self, h: Tensor, screen: NativeScreen | None = None) -> Tensor:
        """Logits (rows, V) of the last layer's output (rows, D); with a screen for one row."""
        head = Head(len(h), self._vocabulary, screen)
        self._library.ld_head(self._ends_at, h.data_ptr(), head.address)
        return head.logits

    def _output(self, state: NativeState, head: Head, watched: Tensor | None, rows: int = 1) -> DecoderOutput:
        """A step's output; the refresher takes its last logits."""
        entropy = None if head.entropy is None else head.entropy.value
        state.refresher.end(head.logits, entropy)
        return DecoderOutput(head.logits, watched, entropy, rows, head.choice)

    def _rope_at(self, position: int) -> tuple[int, int]:
        """Addresses of the cosines and sines (rows, hs) of up to MOST_ROWS positions from `position` on."""
        block, at = divmod(position, ROPE_BLOCK)
        if block not in self._rope_blocks:
            positions = torch.arange(block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK + MOST_ROWS)[None]
            cos, sin = self.rotary(self._norm[None], position_ids=positions)  # (1, positions, hs)
            self._rope_blocks[block] = cos[0].contiguous(), sin[0].contiguous()
        cos, sin = self._rope_blocks[block]
        offset = at * cos.shape[1] * cos.itemsize
        return cos.data_ptr() + offset, sin.data_ptr() + offset


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
