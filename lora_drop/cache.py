"""What decoding remembers: K/V of a different length in each layer, and one hidden vector for each dropped layer."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # tokens by which a layer's storage grows


class KVCache:
    """Keys and values of each layer, in storage that grows by blocks.

    Layers may hold different numbers of tokens: a dropped layer writes nothing at LoRA steps. Entries carry their
    rotary position already, so gaps do no harm. It has the `update` that transformers' attention modules call.
    """

    def __init__(self, num_layers: int):
        self.keys: list[Tensor | None] = [None] * num_layers  # each (B, n_kv, capacity, hs)
        self.values: list[Tensor | None] = [None] * num_layers
        self.lengths = [0] * num_layers

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append (B, n_kv, T, hs) keys and values to a layer and return all that it holds.

        `args` and `kwargs` are what transformers passes to caches of other kinds; none of it matters here.
        """
        start, end = self.lengths[layer_idx], self.lengths[layer_idx] + key.shape[2]
        self._reserve(key, layer_idx, end)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        self.lengths[layer_idx] = end
        return keys[:, :, :end], values[:, :, :end]

    def _reserve(self, like: Tensor, layer: int, tokens: int) -> None:
        """Room for `tokens` tokens in a layer, in whole blocks."""
        old = self.keys[layer]
        if old is not None and old.shape[2] >= tokens:
            return
        batch, heads, _, size = like.shape
        shape = (batch, heads, -(-tokens // BLOCK) * BLOCK, size)
        filled = self.lengths[layer]
        for store in (self.keys, self.values):
            new = torch.empty(shape, dtype=like.dtype, device=like.device)
            if filled:
                new[:, :, :filled] = store[layer][:, :, :filled]
            store[layer] = new

    def clone(self) -> KVCache:
        """A copy with storage of its own: the audit starts from the lane's prefill, which is full by definition."""
        copy = KVCache(len(self.lengths))
        copy.keys = [None if k is None else k.clone() for k in self.keys]
        copy.values = [None if v is None else v.clone() for v in self.values]
        copy.lengths = list(self.lengths)
        return copy

    def layer_bytes(self) -> list[int]:
        """Bytes of the filled entries of each layer, counted from the tensors."""
        sizes = []
        for keys, values, filled in zip(self.keys, self.values, self.lengths, strict=True):
            sizes.append(0 if keys is None else keys[:, :, :filled].nbytes + values[:, :, :filled].nbytes)
        return sizes

    @property
    def nbytes(self) -> int:
        """Bytes of the filled entries of all layers."""
        return sum(self.layer_bytes())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storage that is really held: at most one block a layer more than `nbytes`."""
        stores = (t for store in (self.keys, self.values) for t in store if t is not None)
        return sum(t.untyped_storage().nbytes() for t in stores)


class HiddenCache:
    """For each dropped layer the one (B, D) vector that its reuse rule needs.

    - `state`: the layer's last output, h[t-1][i+1];
    - `anchor`: its output at the last refresh, h[a][i+1];
    - `residual`: what it added at the last refresh, h[a][i+1] - h[a][i];
    - `skip`: nothing.

    With `part="attention"` the stream after attention, u, stands in place of the output.
    """

    def __init__(self, num_layers: int):
        self.vectors: list[Tensor | None] = [None] * num_layers

    def __getitem__(self, layer: int) -> Tensor:
        return self.vectors[layer]

    def __setitem__(self, layer: int, vector: Tensor) -> None:
        self.vectors[layer] = vector
