"""A model's weights as the C steps read them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.decode.native.loader import library
from lora_drop.decode.native.memory import LargePages
from lora_drop.decode.native.structs import BF16, F32, Q4_1, Q8_0, Layer, Matrix
from lora_drop.decode.weights import fused, qk_norms

KINDS = {torch.float32: F32, torch.bfloat16: BF16}
GROUP = 32  # weights of a block, of Q4_1 and Q8_0 alike
Blocks = Callable[[str], np.ndarray | None]  # None: this matrix has none
BLOCK_BYTES = {Q4_1: 20, Q8_0: 34}
BLOCK_KINDS = {size: kind for kind, size in BLOCK_BYTES.items()}


@dataclass(frozen=True)
class NativeWeights:
    """A model's weights as the C steps read them.

    Args:
        kind: `float32`, `bfloat16`, `q4_1/q8_0 blocks`, or blocks and numbers.
        layers, head: structures that point into `tensors`, which keeps the memory.
        layer_bytes, head_bytes, part_bytes: bytes that one weight of a layer's matrices, of the head, or of the parts
            `linear` and `mlp` of a correction takes.
        head_rows: of a head of blocks the rows that it was made of, in the model's own file; they take no memory.
    """

    kind: str
    layers: ctypes.Array[Layer]
    head: Matrix
    layer_bytes: float
    head_bytes: float
    part_bytes: float
    tensors: list[Tensor] = field(repr=False)
    head_rows: np.ndarray | None = field(default=None, repr=False)

    @property
    def packs_parts(self) -> bool:
        """Whether the parts `linear` and `mlp` are read in Q8_0 blocks: beside weights in blocks."""
        return self.part_bytes == BLOCK_BYTES[Q8_0] / GROUP

    @property
    def decoder_name(self) -> str:
        """The name of the decoder that runs them, for the trace."""
        return f"native ({self.kind})"


@torch.no_grad()
def lay_out(model: PreTrainedModel, blocks: Blocks | None) -> NativeWeights:
    """The model's weights for the C steps: its own numbers, fused in place, or the packed blocks that it came from.

    Args:
        blocks: from the name of a matrix (`0.qkv`, `0.out`, `0.gate_up`, `0.down`, ..., `head`) to its rows of Q4_1 or
            Q8_0 blocks, None for one that is read as numbers.
    """
    config, keep, pages = model.config, [], LargePages()
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

    def matrix(name: str, *parts: torch.nn.Linear) -> Matrix:
        rows = None if blocks is None else blocks(name)
        if rows is None:
            return dense(*parts)
        kind = BLOCK_KINDS[rows.shape[1] // (parts[0].in_features // GROUP)]
        keep.append(pages.take(rows.size))
        panels = in_panels(rows, kind, keep[-1])
        panels.bias = vector(None if parts[0].bias is None else torch.cat([part.bias for part in parts]))
        return panels

    layers = []
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        matrices = [
            matrix(f"{i}.qkv", attention.q_proj, attention.k_proj, attention.v_proj),
            matrix(f"{i}.out", attention.o_proj),
            matrix(f"{i}.gate_up", mlp.gate_proj, mlp.up_proj),
            matrix(f"{i}.down", mlp.down_proj),
        ]
        layers.append(
            Layer(
                vector(layer.input_layernorm.weight),
                vector(layer.post_attention_layernorm.weight),
                vector(qk_norms(attention)),
                *matrices,
                *(config.hidden_size, config.num_attention_heads, config.num_key_value_heads, attention.head_dim),
                *(config.intermediate_size, config.rms_norm_eps),
            )
        )
    row = (Layer * len(layers))(*layers)  # side by side, as ld_step wants them
    head = matrix("head", model.get_output_embeddings())
    each = [getattr(layer, name) for layer in layers for name in ("qkv", "out", "gate_up", "down")]
    size = sum(one.n * one.k * _bytes(one) for one in each) / sum(one.n * one.k for one in each)
    named = _named({one.kind for one in (*each, head)}, str(dtype).removeprefix("torch."))
    head_rows = blocks("head") if blocks is not None and head.kind in BLOCK_BYTES else None
    part_bytes = BLOCK_BYTES[Q8_0] / GROUP if "blocks" in named else dtype.itemsize
    return NativeWeights(named, row, head, size, _bytes(head), part_bytes, keep, head_rows)


def _named(kinds: set[int], numbers: str) -> str:
    """What the kinds of a model's matrices are called together."""
    names = [name for name, kind in (("q4_1", Q4_1), ("q8_0", Q8_0)) if kind in kinds]
    packed = ["/".join(names) + " blocks"] if names else []
    return " and ".join(packed + ([numbers] if kinds - BLOCK_BYTES.keys() else []))


def _bytes(matrix: Matrix) -> float:
    """Of a weight."""
    if matrix.kind in BLOCK_BYTES:
        return BLOCK_BYTES[matrix.kind] / GROUP
    return {F32: 4, BF16: 2}[matrix.kind]


def in_panels(rows: np.ndarray, kind: int, panels: Tensor) -> Matrix:
    """Rows of blocks (N, bytes) uint8, N a multiple of 16, as the panels that C reads, in memory of the same size."""
    n, k = rows.shape[0], rows.shape[1] // BLOCK_BYTES[kind] * GROUP
    compiled().ld_pack(rows.ctypes.data, panels.data_ptr(), n, k, kind)
    return Matrix(panels.data_ptr(), None, n, k, kind)


def q8_0(weights: Tensor) -> np.ndarray:
    """Weights (N, K) rounded to Q8_0 blocks: rows (N, K / 32 * 34) uint8 of a float16 scale and 32 signed bytes."""
    groups = weights.float().unflatten(1, (-1, GROUP))  # (N, K / 32, 32)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    codes = (groups / scale.float()).nan_to_num().round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1).flatten(1).numpy()


def compiled() -> ctypes.CDLL:
    """The library, for those who know that it is there."""
    found = library()
    assert found is not None
    return found
