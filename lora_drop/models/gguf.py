"""The packed blocks of the bundled model's GGUF, as the decoders read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lora_drop.models.bundled import BLOCKS


def gguf_rows(gguf: Path, heads: int, kv_heads: int) -> Callable[[str], np.ndarray]:
    """A function from the name of a matrix (`0.qkv`, `0.out`, `0.gate_up`, `0.down`, ..., `head`) to its raw rows.

    Args:
        gguf: the bundled model's; the folder's index says where its tensors lie.
        heads, kv_heads: nh and nkv, for the order of query and key rows.

    Returns:
        Rows of blocks, (N, bytes a row).
    """
    content = np.memmap(gguf, dtype=np.uint8, mode="r")
    index = json.loads(gguf.with_name(BLOCKS).read_text(encoding="utf-8"))
    blocks = {name: content[at : at + n * size].reshape(n, size) for name, (at, n, size) in index.items()}

    def rows(name: str) -> np.ndarray:
        if name == "head":
            return blocks["token_embd.weight"]  # tied
        layer, _, matrix = name.partition(".")
        if matrix == "qkv":
            q, k, v = (blocks[f"blk.{layer}.attn_{part}.weight"] for part in "qkv")
            return np.concatenate((_half_split(q, heads), _half_split(k, kv_heads), v))
        names = {"out": ["attn_output"], "gate_up": ["ffn_gate", "ffn_up"], "down": ["ffn_down"]}[matrix]
        return np.concatenate([blocks[f"blk.{layer}.{part}.weight"] for part in names])

    return rows


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's interleaved rotary order of query and key rows back to transformers' half-split one."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
