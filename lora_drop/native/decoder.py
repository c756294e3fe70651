"""The native decoder: the reference's interface, single-token steps through `step.c`.

Prefill and the audit's chunks are the reference's. Activations are float32 whatever the model's number type; K/V have
the model's. A test holds it against the reference for every rule, part, kv rule and architecture.

Shapes: D hidden size, nh heads, nkv K/V heads, hs head size, r rank.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.adapters import AdapterBank
from lora_drop.decoder import Decoder, DecodeState
from lora_drop.native import BF16, F32, Q4_1, Q8_0, Layer, Matrix, Store, library
from lora_drop.schedule import Schedule
from lora_drop.weights import GROUP, fused, gguf_rows, qk_norms

ROPE_BLOCK = 256  # positions whose cosines and sines are computed together
KINDS = {torch.float32: F32, torch.bfloat16: BF16}
BLOCK_BYTES = {Q4_1: 20, Q8_0: 34}


@dataclass(frozen=True)
class NativeWeights:
    """A model's weights as step.c reads them.

    Args:
        kind: for the trace: `float32`, `bfloat16` or `q4_1/q8_0 blocks`.
        layers, head: structures that point into `tensors`, which keeps the memory.
        layer_bytes, head_bytes: bytes that one weight of a layer's matrices, or of the head, takes.
    """

    kind: str
    layers: list[Layer]
    head: Matrix
    layer_bytes: float
    head_bytes: float
    tensors: list[Tensor] = field(repr=False)


@torch.no_grad()
def lay_out(model: PreTrainedModel, gguf: Path | None) -> NativeWeights:
    """The model's weights for step.c: its own numbers, fused in place, or the blocks of the GGUF that it came from."""
    config, keep = model.config, []
    dtype = model.get_input_embeddings().weight.dtype
    blocks = None if gguf is None else gguf_rows(gguf, config.num_attention_heads, config.num_key_value_heads)

    def vector(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        keep.append(tensor.float().contiguous())
        return keep[-1].data_ptr()

    def dense(*parts: torch.nn.Linear) -> Matrix:
        weight, bias = fused(*parts)
        keep.append(weight)
        return Matrix(weight.data_ptr(), vector(bias), *weight.shape, KINDS[dtype])

    def packed(name: str, kind: int = Q4_1) -> Matrix:
        rows = blocks(name)
        n, k = rows.shape[0], rows.shape[1] // BLOCK_BYTES[kind] * GROUP
        panels = torch.empty(rows.size, dtype=torch.uint8)
        library().ld_pack(rows.ctypes.data, panels.data_ptr(), n, k, kind)
        keep.append(panels)
        return Matrix(panels.data_ptr(), None, n, k, kind)

    layers = []
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        if blocks is None:
            matrices = (
                dense(attention.q_proj, attention.k_proj, attention.v_proj),
                dense(attention.o_proj),
                dense(mlp.gate_proj, mlp.up_proj),
                dense(mlp.down_proj),
            )
        else:
            matrices = (packed(f"{i}.qkv"), packed(f"{i}.out"), packed(f"{i}.gate_up"), packed(f"{i}.down"))
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
    if blocks is None:
        name, head, sizes = (
            str(dtype).removeprefix("torch."),
            dense(model.get_output_embeddings()),
            (dtype.itemsize,) * 2,
        )
    else:
        name, head = "q4_1/q8_0 blocks", packed("head", Q8_0)
        sizes = BLOCK_BYTES[Q4_1] / GROUP, BLOCK_BYTES[Q8_0] / GROUP
    return NativeWeights(name, layers, head, *sizes, keep)


@dataclass
class NativeState(DecodeState):
    """A lane's state, and its bank as step.c reads it: A, B and the float32 gate of each corrected layer."""

    corrections: dict[int, tuple[Matrix, Matrix, Tensor]] = field(default_factory=dict)


class NativeDecoder(Decoder):
    """`step` for one token of one text through step.c; all else is the reference's."""

    def __init__(self, model: PreTrainedModel, weights: NativeWeights):
        super().__init__(model)
        self.name = f"native ({weights.kind})"
        self._weights, self._eps = weights, model.config.rms_norm_eps
        self._layer_at = [ctypes.addressof(layer) for layer in weights.layers]
        self._head_at, self._vocabulary = ctypes.addressof(weights.head), weights.head.n
        self._norm = self.norm.weight.float()
        self._kv_kind = KINDS[self.dtype]
        self._library = library()
        self._library.ld_threads(torch.get_num_threads())
        self._rope_blocks: dict[int, tuple[Tensor, Tensor]] = {}  # functions of the position alone

    def new_state(self, schedule: Schedule, bank: AdapterBank | None = None) -> NativeState:
        """See `Decoder.new_state`."""
        plain = super().new_state(schedule, bank)
        corrections = {}
        for i in schedule.dropped if bank is not None else ():
            if i in bank.a:
                pair = (Matrix(t.data_ptr(), None, *t.shape, KINDS[t.dtype]) for t in (bank.a[i], bank.b[i]))
                corrections[i] = (*pair, bank.gate[i].float())
        return NativeState(schedule, bank, plain.kv, plain.hidden, corrections=corrections)

    @torch.inference_mode()
    def step(self, token: Tensor, state: NativeState, watch: list[Tensor] | None = None) -> Tensor:
        """Decode one token (1, 1). Returns logits (1, V) in float32; see `Decoder.step`."""
        lora = not state.pacer.begin()
        dropped = state.schedule.dropped_set
        h = self.embed.weight[token[0, 0]].float()[None]  # (1, D)
        rope = self._rope(state.position)
        for i in range(len(self.layers)):
            if i not in dropped:
                h = self._feed(i, self._attend(i, h, rope, state))
                continue
            h = self._lora(i, h, rope, state) if lora else self._refresh(i, h, rope, state)
            if watch is not None:
                watch.append(h)
        state.position += 1
        logits = torch.empty(1, self._vocabulary)
        self._library.ld_head(self._head_at, self._norm.data_ptr(), self._eps, h.data_ptr(), logits.data_ptr())
        state.pacer.end(logits)
        return logits

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

    def _store(self, i: int, state: NativeState) -> Store:
        """Room for this token in a layer's cache; step.c fills it."""
        store = state.kv.extend(i)
        return Store(store.data_ptr(), store.shape[3], state.kv.lengths[i] - 1, self._kv_kind)

    def _attend(self, i: int, h: Tensor, rope: tuple[int, int], state: NativeState) -> Tensor:
        """u = h + attention; writes K/V."""
        u, store = torch.empty_like(h), self._store(i, state)
        self._library.ld_attention(self._layer_at[i], h.data_ptr(), *rope, ctypes.addressof(store), u.data_ptr())
        return u

    def _feed(self, i: int, u: Tensor) -> Tensor:
        """u + MLP."""
        out = torch.empty_like(u)
        self._library.ld_mlp(self._layer_at[i], u.data_ptr(), out.data_ptr())
        return out

    def _refresh(self, i: int, h: Tensor, rope: tuple[int, int], state: NativeState) -> Tensor:
        """A droppable layer at a full step: it leaves its anchor behind."""
        u = self._attend(i, h, rope, state)
        out = self._feed(i, u)
        state.hidden[i] = self._remember(state.schedule.reuse, h, out if state.schedule.part == "block" else u)
        return out

    def _lora(self, i: int, h: Tensor, rope: tuple[int, int], state: NativeState) -> Tensor:
        """A dropped layer at a LoRA step."""
        schedule, bank = state.schedule, state.bank
        if schedule.kv == "write":
            store = self._store(i, state)
            self._library.ld_write_kv(self._layer_at[i], h.data_ptr(), *rope, ctypes.addressof(store))
        correction = state.corrections.get(i)
        cached = h if schedule.reuse == "skip" else state.hidden[i].float()  # prefill leaves the model's number type
        u = cached
        if schedule.reuse == "residual":
            u = torch.addcmul(h, correction[2], cached) if correction else h + cached
        if correction:
            a, b, _ = correction
            base, u = u, torch.empty_like(h)
            self._library.ld_correct(
                ctypes.addressof(a),
                ctypes.addressof(b),
                h.data_ptr(),
                base.data_ptr(),
                bank.alpha / bank.rank,
                u.data_ptr(),
            )
            if schedule.refresh_norm is not None:
                state.pacer.measure(u - base, cached)
        if schedule.reuse == "state":
            state.hidden[i] = u
        return u if schedule.part == "block" else self._feed(i, u)
