"""A model's weights, laid out for the C steps."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.decode.cache import LARGE_PAGE, ask_large_pages
from lora_drop.decode.layer import fused, projections, qk_norms
from lora_drop.decode.native.loader import Library, library
from lora_drop.decode.native.structs import BF16, F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, Layer, Matrix

KINDS = {torch.float32: F32, torch.bfloat16: BF16}
GROUP = 32  # weights of a block; of Q4_K and Q6_K an eighth of one
BLOCK_KINDS = {"Q4_0": Q4_0, "Q4_1": Q4_1, "Q8_0": Q8_0, "Q4_K": Q4_K, "Q6_K": Q6_K}  # by their names in GGUF files
BLOCK_BYTES: dict[int, float] = {Q4_0: 18, Q4_1: 20, Q8_0: 34, Q4_K: 18, Q6_K: 26.25}  # of 32 weights
CHUNK = 1 << 26  # bytes of memory in large pages that blocks are laid out in, unless one matrix takes more
ALIGNED = 64  # bytes


class Packed(NamedTuple):
    """Rows of a matrix in the blocks of a GGUF file, (N, bytes of a row) uint8, and the name of their kind."""

    kind: str
    rows: np.ndarray


Blocks = Callable[[str], Sequence[Packed | None]]


@dataclass(frozen=True)
class NativeWeights:
    """A model's weights as the C steps read them.

    Args:
        decoder_name: of the decoder that runs them, such as `native (bfloat16)` or `native (q4_1/q8_0 blocks)`.
        layers: structures that point into `memory`.
        head: the same, of the head.
        layer_bytes: of each layer the mean bytes of a weight of k and v, of the attention, and of the MLP.
        head_bytes: the same of the head.
        part_bytes: the same of a correction.
        memory: keeps what the structures point to.
        head_blocks: of a head in blocks the rows in the model's mapped file, which take no memory.
    """

    decoder_name: str
    layers: ctypes.Array[Layer]
    head: Matrix
    layer_bytes: list[tuple[float, float, float]]
    head_bytes: float
    part_bytes: float
    memory: list[Any] = field(repr=False)
    head_blocks: Packed | None = field(default=None, repr=False)

    @property
    def packs_parts(self) -> bool:
        """True if corrections are read in Q8_0 blocks: beside weights in blocks."""
        return self.part_bytes == bytes_of(Q8_0)

    @property
    def code_bytes(self) -> float:
        """Bytes of a code of a screened head, with its share of a scale."""
        return bytes_of(Q4_0)


class _Layout:
    """Lays out matrices; keeps their memory, and the kinds of their numbers."""

    def __init__(self, blocks: Blocks | None, dtype: torch.dtype):
        self._blocks, self._dtype = blocks, dtype
        self._free = torch.empty(0, dtype=torch.uint8)  # what is left of the last chunk of memory
        self.memory: list[Any] = []
        self.kinds: set[int] = set()

    def vector(self, tensor: Tensor | None) -> int | None:
        """Address of a tensor's numbers in float32."""
        if tensor is None:
            return None
        numbers = tensor.float().contiguous()
        self.memory.append(numbers)
        return numbers.data_ptr()

    def matrix(self, name: str, *parts: torch.nn.Linear) -> tuple[Matrix, list[int]]:
        """Parts as one matrix, those of one kind adjacent in memory; and the kind of each part."""
        packed = [None] * len(parts) if self._blocks is None else self._blocks(name)
        kinds = [KINDS[self._dtype] if blocks is None else BLOCK_KINDS[blocks.kind] for blocks in packed]
        pieces = []
        for kind, group in groupby(zip(kinds, parts, packed, strict=True), lambda part: part[0]):
            _, linears, blocks = zip(*group, strict=True)
            pieces.append(self._dense(*linears) if blocks[0] is None else self._panels(kind, blocks))
        for piece, after in zip(pieces[-2::-1], pieces[:0:-1], strict=True):  # from the end
            self.memory.append(after)
            piece.n, piece.next = piece.n + after.n, ctypes.addressof(after)
        pieces[0].bias = self.vector(None if parts[0].bias is None else torch.cat([part.bias for part in parts]))
        self.kinds.update(kinds)
        return pieces[0], kinds

    def _dense(self, *parts: torch.nn.Linear) -> Matrix:
        self.memory.append(fused(*parts)[0])
        return dense(self.memory[-1])

    def _panels(self, kind: int, blocks: Sequence[Packed]) -> Matrix:
        rows = np.concatenate([part.rows for part in blocks])
        self.memory.append(self._bytes(rows.size))
        return in_panels(rows, kind, self.memory[-1])

    def _bytes(self, size: int) -> Tensor:
        """Uninitialised bytes (size,) of a chunk of memory."""
        if size > len(self._free):
            self._free = in_large_pages(max(size, CHUNK))
        piece, self._free = self._free[:size], self._free[-(-size // ALIGNED) * ALIGNED :]
        return piece


@torch.no_grad()
def lay_out(model: PreTrainedModel, blocks: Blocks | None) -> NativeWeights:
    """Lay out a model's weights for the C steps: its own numbers, fused in place, or the blocks of its file.

    Args:
        blocks: name of a matrix (`0.qkv`, `0.out`, `0.gate_up`, `0.down`, ..., `head`) -> its parts (q, k and v; gate
            and up) in blocks, each of a multiple of 16 rows; None for a part that is read as numbers.
    """
    config = model.config
    dtype: Any = model.get_input_embeddings().weight.dtype  # Any: to a type checker it may be a module
    layout, layers, layer_bytes = _Layout(blocks, dtype), [], []
    for i, layer in enumerate(model.model.layers):
        matrices, sizes = {}, {}
        for name, parts in projections(layer).items():
            matrices[name], kinds = layout.matrix(f"{i}.{name}", *parts)
            sizes[name] = [(part.weight.numel(), bytes_of(kind)) for part, kind in zip(parts, kinds, strict=True)]
        qkv = sizes["qkv"]
        layer_bytes.append((_mean(qkv[1:]), _mean(qkv + sizes["out"]), _mean(sizes["gate_up"] + sizes["down"])))
        layers.append(
            Layer(
                attention_norm=layout.vector(layer.input_layernorm.weight),
                mlp_norm=layout.vector(layer.post_attention_layernorm.weight),
                qk_norm=layout.vector(qk_norms(layer.self_attn)),
                **matrices,
                hidden=config.hidden_size,
                heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
                head_dim=layer.self_attn.head_dim,
                inner=config.intermediate_size,
                eps=config.rms_norm_eps,
            )
        )
    head, (head_kind,) = layout.matrix("head", model.get_output_embeddings())
    head_blocks = blocks("head")[0] if blocks is not None else None
    in_blocks = bool(layout.kinds - set(KINDS.values()))
    return NativeWeights(
        decoder_name=f"native ({_named(layout.kinds, dtype)})",
        layers=(Layer * len(layers))(*layers),  # adjacent, as ld_step takes them
        head=head,
        layer_bytes=layer_bytes,
        head_bytes=bytes_of(head_kind),
        part_bytes=bytes_of(Q8_0) if in_blocks else dtype.itemsize,
        memory=layout.memory,
        head_blocks=head_blocks,
    )


def _mean(sizes: list[tuple[int, float]]) -> float:
    """Mean bytes of a weight, from pairs of a number of weights and the bytes of each."""
    return sum(count * size for count, size in sizes) / sum(count for count, _ in sizes)


def _named(kinds: set[int], dtype: torch.dtype) -> str:
    """The weights in a decoder's name."""
    blocks = [name.lower() for name, kind in BLOCK_KINDS.items() if kind in kinds]
    numbers = [str(dtype).removeprefix("torch.")] if kinds & set(KINDS.values()) else []
    return " and ".join(([f"{'/'.join(blocks)} blocks"] if blocks else []) + numbers)


def bytes_of(kind: int) -> float:
    """Bytes of a weight."""
    return BLOCK_BYTES[kind] / GROUP if kind in BLOCK_BYTES else {F32: 4, BF16: 2}[kind]


def dense(numbers: Tensor) -> Matrix:
    """A matrix of numbers (N, K), which the caller keeps."""
    n, k = numbers.shape
    return Matrix(data=numbers.data_ptr(), n=n, k=k, kind=KINDS[numbers.dtype])


def in_panels(rows: np.ndarray, kind: int, panels: Tensor) -> Matrix:
    """Regroup rows of blocks (N, bytes) uint8, N a multiple of 16, into the panels that C reads, of the same size."""
    n, k = rows.shape[0], int(rows.shape[1] / bytes_of(kind))
    compiled().ld_pack(rows.ctypes.data, panels.data_ptr(), n, k, kind)
    return Matrix(data=panels.data_ptr(), n=n, k=k, kind=kind)


def in_large_pages(size: int) -> Tensor:
    """Uninitialised bytes (size,) in large pages, which wait less for address translation when streamed."""
    memory = torch.empty(size + 2 * LARGE_PAGE, dtype=torch.uint8)
    ask_large_pages(memory.data_ptr(), len(memory))
    return memory[-memory.data_ptr() % LARGE_PAGE :][:size]  # from the first whole one on


def q8_0(weights: Tensor) -> np.ndarray:
    """Round weights (N, K) to Q8_0 blocks: rows (N, K / 32 * 34) uint8, a float16 scale and 32 signed bytes each."""
    groups = weights.float().unflatten(1, (-1, GROUP))  # (N, K / 32, 32)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    codes = (groups / scale.float()).nan_to_num().round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1).flatten(1).numpy()


def compiled() -> Library:
    """The library, which the caller knows to be there."""
    native = library()
    assert native is not None
    return native


class TimedLibrary:
    """The library's functions.

    Attributes:
        ms: milliseconds spent in them so far.
    """

    def __init__(self, library: Library):
        self._library, self.ms = library, 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._library, name)

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.ms += 1000 * (time.perf_counter() - start)

        setattr(self, name, timed)  # the next call finds it at once
        return timed
