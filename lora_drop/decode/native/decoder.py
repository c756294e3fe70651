"""The native decoder: the reference's interface, single-token steps through C.

Prefill is the reference's. Activations are float32 whatever the model's number type; K/V have the model's. A test
holds it against the reference for every rule, part, kv rule and architecture.

Shapes: D hidden size, nh heads, nkv K/V heads, hs head size, r rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.structs import BF16, F32, Q4_1, Q8_0, Layer, Matrix, Plan, Step, Store
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.step import DecoderOutput, DecodeState
from lora_drop.decode.weights import fused, qk_norms
from lora_drop.method.schedule import Schedule
from lora_drop.method.settings import REUSE_RULES

ROPE_BLOCK = 256  # positions whose cosines and sines are computed together
KINDS = {torch.float32: F32, torch.bfloat16: BF16}
GROUP = 32  # weights of a block, of Q4_1 and Q8_0 alike
Blocks = Callable[[str], np.ndarray]
BLOCK_BYTES = {Q4_1: 20, Q8_0: 34}


@dataclass(frozen=True)
class NativeWeights:
    """A model's weights as the C steps read them.

    Args:
        kind: `float32`, `bfloat16` or `q4_1/q8_0 blocks`.
        layers, head: structures that point into `tensors`, which keeps the memory.
        layer_bytes, head_bytes: bytes that one weight of a layer's matrices, or of the head, takes.
    """

    kind: str
    layers: ctypes.Array[Layer]
    head: Matrix
    layer_bytes: float
    head_bytes: float
    tensors: list[Tensor] = field(repr=False)

    @property
    def decoder_name(self) -> str:
        """The name of the decoder that runs them, for the trace."""
        return f"native ({self.kind})"


@torch.no_grad()
def lay_out(model: PreTrainedModel, blocks: Blocks | None) -> NativeWeights:
    """The model's weights for the C steps: its own numbers, fused in place, or the packed blocks that it came from.

    Args:
        blocks: from the name of a matrix (`0.qkv`, `0.out`, `0.gate_up`, `0.down`, ..., `head`) to its rows of blocks.
    """
    config, keep = model.config, []
    dtype: Any = model.get_input_embeddings().weight.dtype  # Any: to a type checker it may be a module

    def vector(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        keep.append(tensor.float().contiguous())
        return keep[-1].data_ptr()

    def dense(*parts: torch.nn.Linear) -> Matrix:
        weight, bias = fused(*parts)
        keep.append(weight)
        return Matrix(weight.data_ptr(), vector(bias), *weight.shape, KINDS[dtype])

    def packed(blocks: Blocks, name: str, kind: int = Q4_1) -> Matrix:
        rows = blocks(name)
        n, k = rows.shape[0], rows.shape[1] // BLOCK_BYTES[kind] * GROUP
        panels = torch.empty(rows.size, dtype=torch.uint8)
        _compiled().ld_pack(rows.ctypes.data, panels.data_ptr(), n, k, kind)
        keep.append(panels)
        return Matrix(panels.data_ptr(), None, n, k, kind)

    layers = []
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        if blocks is None:
            matrices = [
                dense(attention.q_proj, attention.k_proj, attention.v_proj),
                dense(attention.o_proj),
                dense(mlp.gate_proj, mlp.up_proj),
                dense(mlp.down_proj),
            ]
        else:
            matrices = [packed(blocks, f"{i}.{name}") for name in ("qkv", "out", "gate_up", "down")]
        layers.append(
            Layer(
                vector(layer.input_layernorm.weight),
                vector(layer.post_attention_layernorm.weight),
                vector(qk_norms(attention)),
                *matrices,
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                attention.head_dim,
                config.intermediate_size,
                config.rms_norm_eps,
            )
        )
    row = (Layer * len(layers))(*layers)  # side by side, as ld_step wants them
    if blocks is None:
        kind, head = str(dtype).removeprefix("torch."), dense(model.get_output_embeddings())
        return NativeWeights(kind, row, head, dtype.itemsize, dtype.itemsize, keep)
    sizes = BLOCK_BYTES[Q4_1] / GROUP, BLOCK_BYTES[Q8_0] / GROUP
    return NativeWeights("q4_1/q8_0 blocks", row, packed(blocks, "head", Q8_0), *sizes, keep)


def _compiled() -> ctypes.CDLL:
    """The library, for those who know that it is there."""
    found = library()
    assert found is not None
    return found


@dataclass
class NativeState(DecodeState):
    """A lane's state, and what the C steps read and write of it.

    Args:
        plan: what the schedule does with each layer; points into `tensors` and `vectors`.
        vectors: what the rule remembers of each skipped layer, (n, D) float32; empty until the first step.
        stores: of each layer its K/V; there from the first step on.
    """

    plan: ctypes.Array[Plan] | None = None
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))
    tensors: list[Tensor] = field(default_factory=list, repr=False)
    stores: ctypes.Array[Store] = field(init=False, repr=False)


class NativeDecoder(ReferenceDecoder):
    """`step` for one token of one text through C; all else is the reference's."""

    def __init__(self, model: PreTrainedModel, weights: NativeWeights):
        super().__init__(model)
        self.name = weights.decoder_name
        self._weights, self._eps = weights, model.config.rms_norm_eps
        self._layers_at, self._head_at = ctypes.addressof(weights.layers), ctypes.addressof(weights.head)
        self._vocabulary = weights.head.n
        self._norm = self.norm.weight.float()
        self._kv_kind = KINDS[self.dtype]
        self._library = _compiled()
        self._library.ld_threads(torch.get_num_threads())
        self._rope_blocks: dict[int, tuple[Tensor, Tensor]] = {}  # functions of the position alone

    def new_state(
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False
    ) -> NativeState:
        """See `step.Decoder`. The caches grow by blocks, so `tokens` is of no use here."""
        return NativeState(schedule, bank, KVCache(self.num_layers), HiddenCache(self.num_layers), watch)

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`; token (1, 1), logits in float32."""
        assert isinstance(state, NativeState)
        schedule, bank = state.schedule, state.bank
        lora = not state.refresher.begin()
        if state.plan is None:
            state.plan = self._begin(state)
        self._make_room(state, schedule.dropped_set if lora and schedule.kv == "skip" else ())
        n = len(schedule.dropped)
        h = self.embed.weight[token[0, 0]].to(torch.float32, copy=True)  # (D,): `ld_step` works in it
        watched = torch.empty(n, 1, h.shape[0]) if state.watch else None
        ratios = None if schedule.refresh_norm is None else torch.empty(n)
        step = Step(
            *(1, lora, REUSE_RULES.index(schedule.reuse), schedule.part == "attention", schedule.kv == "write"),
            bank.alpha / bank.rank if bank else 0.0,
            *(None if t is None else t.data_ptr() for t in (watched, ratios)),
        )
        self._library.ld_step(
            *(self._layers_at, ctypes.addressof(state.plan), self.num_layers, ctypes.addressof(step)),
            *(*self._rope(state.position), ctypes.addressof(state.stores), h.data_ptr()),
        )
        if ratios is not None and lora:
            state.refresher.take(ratios[~ratios.isnan()])
        state.position += 1
        logits = torch.empty(1, self._vocabulary)
        self._library.ld_head(self._head_at, self._norm.data_ptr(), self._eps, 1, h.data_ptr(), logits.data_ptr())
        entropy = None
        if schedule.refresh_entropy is not None:
            entropy = self._library.ld_entropy(logits.data_ptr(), self._vocabulary)
        state.refresher.end(logits, entropy)
        return DecoderOutput(logits, watched, state.refresher.entropy)

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """See `step.Decoder`.

        What comes before `logits_from` is read at once, the rest token by token: with the very arithmetic of a lane's
        steps, so that what is compared with them differs by what LoRA-Drop does and by nothing else.
        """
        outputs, logits, start = [], [], 0
        if not kv.lengths[0]:
            start = logits_from + 1
            found = super().read(tokens[:, :start], kv, position, layers, logits_from)
            assert found.watched is not None
            outputs, logits = [found.watched.float()], [found.logits.float()]
        state = self.new_state(Schedule(1, self.num_layers, layers, reuse="skip"), watch=True)
        state.kv, state.position = kv, position + start
        for at in range(start, tokens.shape[1]):
            found = self.step(tokens[:, at : at + 1], state)
            assert found.watched is not None
            outputs.append(found.watched[:, :, None])
            if at >= logits_from:
                logits.append(found.logits[:, None])
        return DecoderOutput(torch.cat(logits, 1), torch.cat(outputs, 2))

    def _rope(self, position: int) -> tuple[int, int]:
        """Addresses of the cosines and sines (hs,) of a position."""
        block, at = divmod(position, ROPE_BLOCK)
        if block not in self._rope_blocks:
            positions = torch.arange(block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK)[None]
            cos, sin = self.rotary(self._norm[None], position_ids=positions)  # (1, ROPE_BLOCK, hs)
            self._rope_blocks[block] = cos[0].contiguous(), sin[0].contiguous()
        cos, sin = self._rope_blocks[block]
        offset = at * cos.shape[1] * cos.itemsize
        return cos.data_ptr() + offset, sin.data_ptr() + offset

    def _begin(self, state: NativeState) -> ctypes.Array[Plan]:
        """Before the first step: the plan, to be kept, and what prefill left behind, where `ld_step` finds it."""
        schedule, bank = state.schedule, state.bank
        if schedule.reuse != "skip" and schedule.dropped:
            state.vectors = torch.cat([state.hidden[i] for i in schedule.dropped]).float()
        plans = (Plan * self.num_layers)()
        for row, i in enumerate(schedule.dropped):
            plan = plans[i]
            plan.drops = 1
            plan.hidden = state.vectors[row].data_ptr() if len(state.vectors) else None
            if bank is None or i not in bank.a:
                continue
            a, bt = bank.a[i].contiguous(), bank.b[i].T.contiguous()  # (r, D) each: both are read along their rows
            plan.linear.a, plan.linear.bt = (Matrix(t.data_ptr(), None, *t.shape, KINDS[t.dtype]) for t in (a, bt))
            state.tensors += [a, bt]
            if schedule.reuse == "residual":
                state.tensors.append(bank.gate[i].float())
                plan.gate = state.tensors[-1].data_ptr()
        tensors = [state.kv.store(i) for i in range(self.num_layers)]
        pairs = zip(tensors, state.kv.lengths, strict=True)
        stores = (Store(t.data_ptr(), t.shape[3], count, self._kv_kind) for t, count in pairs)
        state.stores = (Store * self.num_layers)(*stores)
        return plans

    @staticmethod
    def _make_room(state: NativeState, skipped: Collection[int]) -> None:
        """Room for this token in the caches of all layers but those that are skipped; `ld_step` fills it."""
        kv, lengths = state.kv, state.kv.lengths
        for i, store in enumerate(state.stores):
            if i in skipped:
                continue
            if lengths[i] < store.capacity:
                lengths[i] += 1
                continue
            grown = kv.extend(i)
            store.data, store.capacity = grown.data_ptr(), grown.shape[3]
