"""A model's weights laid out for single-token steps: fused projections, dense or in the model's own packed blocks.

A decode step reads every weight once, so what counts is bytes and calls: q, k and v are one matrix, gate and up are
one, and the bundled model keeps the blocks of its GGUF (4 bits, Q4_1; 8 bits, Q8_0, for the embedding that is also the
head) instead of the bfloat16 numbers that they stand for. Nothing of a request is kept here.

Shapes: D hidden size, I intermediate size, V vocabulary, nh heads, nkv K/V heads, hs head size; a matrix is (N, K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

GROUP = 32  # weights of a block, of Q4_1 and Q8_0 alike

Matrix = Callable[[Tensor], Tensor]  # (1, K) -> (1, N)


@dataclass(frozen=True)
class LayerWeights:
    """One layer: its norms (D,), and what multiplies. `qk_norm` is Qwen3's, (nh + nkv, hs), else None."""

    attention_norm: Tensor
    qkv: Matrix
    qk_norm: Tensor | None
    out: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class StepWeights:
    """All that a step needs but the embedding and the last norm, which are the model's own.

    Args:
        kind: what the matrices are, for the trace: `float32`, `bfloat16` or `q4_1/q8_0 blocks`.
        dtype: of activations and K/V.
        layer_bytes, head_bytes: bytes that one weight of a layer's matrices, or of the head, takes.
    """

    kind: str
    dtype: torch.dtype
    layers: list[LayerWeights]
    head: Matrix
    layer_bytes: float
    head_bytes: float


@torch.no_grad()
def fuse(model: PreTrainedModel) -> StepWeights:
    """The model's own weights with q, k, v and gate, up fused; the modules keep views, so that none is there twice."""
    dtype = model.get_input_embeddings().weight.dtype
    return StepWeights(
        kind=str(dtype).removeprefix("torch."),
        dtype=dtype,
        layers=[
            _layer(
                layer,
                _fused(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _fused(layer.self_attn.o_proj),
                _fused(layer.mlp.gate_proj, layer.mlp.up_proj),
                _fused(layer.mlp.down_proj),
            )
            for layer in model.model.layers
        ],
        head=_fused(model.get_output_embeddings()),
        layer_bytes=dtype.itemsize,
        head_bytes=dtype.itemsize,
    )


def _layer(layer: nn.Module, qkv: Matrix, out: Matrix, gate_up: Matrix, down: Matrix) -> LayerWeights:
    norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return LayerWeights(norms[0], qkv, qk_norms(layer.self_attn), out, norms[1], gate_up, down)


def qk_norms(attention: nn.Module) -> Tensor | None:
    """Qwen3's norms of query and key heads, a row a head (nh + nkv, hs); None for the others."""
    if not hasattr(attention, "q_norm"):
        return None
    heads = [proj.weight.shape[0] // attention.head_dim for proj in (attention.q_proj, attention.k_proj)]
    norms = (attention.q_norm.weight, attention.k_norm.weight)
    return torch.cat([norm.expand(count, -1) for norm, count in zip(norms, heads, strict=True)])


def fused(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the parts side by side. The parts' own weights become views of the one matrix."""
    if len(parts) == 1:
        return parts[0].weight, parts[0].bias
    weight = torch.cat([part.weight for part in parts])
    start = 0
    for part in parts:
        part.weight.data = weight[start : start + part.out_features]
        start += part.out_features
    return weight, None if parts[0].bias is None else torch.cat([part.bias for part in parts])


def _fused(*parts: nn.Linear) -> Matrix:
    """x -> the outputs of all parts side by side."""
    weight, bias = fused(*parts)
    return lambda x: nn.functional.linear(x, weight, bias)


@torch.no_grad()
def pack(model: PreTrainedModel, rows: Callable[[str], np.ndarray]) -> StepWeights:
    """The matrices as the GGUF has them, for torch's packed CPU kernel; activations are bfloat16.

    The kernel computes (q - 8) * scale + zero for groups of 32: a Q4_1 block with scale d and minimum m gives scale d
    and zero m + 8d; a Q8_0 row splits into two 4-bit planes (q + 128 = 16 * high + low) with scales 16d and d. Scales
    and zeros are bfloat16 as the activations are, which moves a weight by no more than its own bfloat16 rounding may.
    """
    low, high = _q8_0_planes(rows("head"))
    return StepWeights(
        kind="q4_1/q8_0 blocks",
        dtype=torch.bfloat16,
        layers=[
            _layer(
                layer,
                _packed(*_q4_1(rows(f"{i}.qkv"))),
                _packed(*_q4_1(rows(f"{i}.out"))),
                _packed(*_q4_1(rows(f"{i}.gate_up"))),
                _packed(*_q4_1(rows(f"{i}.down"))),
            )
            for i, layer in enumerate(model.model.layers)
        ],
        head=lambda x: low(x) + high(x),
        layer_bytes=0.5 + 4 / GROUP,
        head_bytes=2 * (0.5 + 4 / GROUP),
    )


def _q4_1(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes 0..15 (N, K), scales and zeros (N, K / 32) of rows of Q4_1 blocks: d, m (float16), 16 bytes of codes."""
    n = rows.shape[0]
    blocks = rows.reshape(n, -1, 4 + GROUP // 2)
    d, m = _halves(blocks, 0), _halves(blocks, 2)
    codes = np.concatenate((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), axis=-1)
    return codes.reshape(n, -1), d, m + 8 * d


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, as float32."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)


def _q8_0_planes(rows: np.ndarray) -> tuple[Matrix, Matrix]:
    """The low and the high 4 bits of rows of Q8_0 blocks: d (float16), 32 signed bytes. q + 128 = 16 * high + low.

    As (code - 8) * scale + zero: the low plane's zero is 8d, the high one's 16 * 8d - 128d = 0.
    """
    n = rows.shape[0]
    blocks = rows.reshape(n, -1, 2 + GROUP)
    d = _halves(blocks, 0)
    codes = (blocks[..., 2:] ^ 128).reshape(n, -1)  # a signed byte + 128, as an unsigned one
    return _packed(codes & 15, d, 8 * d), _packed(codes >> 4, 16 * d, np.zeros_like(d))


def _packed(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Matrix:
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes.astype(np.int32)), 1)
    # (K / 32, N, 2), as the kernel reads them.
    affine = torch.from_numpy(np.stack((scales, zeros), -1)).transpose(0, 1).to(torch.bfloat16).contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return lambda x: multiply(x, packed, GROUP, affine)
