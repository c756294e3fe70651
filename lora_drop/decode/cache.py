"""What decoding remembers: K/V of a different length in each layer, and one hidden vector for each skipped layer."""

from __future__ import annotations

import ctypes
import operator
import sys

import torch
from torch import Tensor

BLOCK = 64  # tokens by which a layer's storage grows
LARGE_PAGE = 1 << 21  # bytes


def ask_large_pages(address: int, size: int) -> None:
    """On Linux, ask for large pages inside `size` bytes from an address on, before they are written.

    Memory that is read in full again and again (the K/V of a long text) then waits less for address translation.
    """
    first, last = -(-address // LARGE_PAGE) * LARGE_PAGE, (address + size) // LARGE_PAGE * LARGE_PAGE
    if first < last and sys.platform == "linux":
        length, huge = ctypes.c_size_t(last - first), 14  # MADV_HUGEPAGE; a kernel without it refuses, which is fine
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), length, huge)


class KVCache:
    """Keys and values of each layer, in storage that grows by blocks.

    Layers may hold different numbers of tokens: a skipped layer writes nothing at LoRA steps. Entries carry their
    rotary position already, so gaps do no harm. It has the `update` that transformers' attention modules call.
    """

    def __init__(self, num_layers: int):
        # Keys and values of a layer in one tensor, (2, B, n_kv, capacity, hs): a decode step writes both at once.
        self.stores: list[Tensor | None] = [None] * num_layers
        self.lengths = [0] * num_layers
        self._token_bytes = [0] * num_layers  # of a layer's key and value of one token, counted from its tensor

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append (B, n_kv, T, hs) keys and values to a layer and return all that it holds.

        `args` and `kwargs` are what transformers passes to caches of other kinds; none of it matters here.
        """
        start, end = self.lengths[layer_idx], self.lengths[layer_idx] + key.shape[2]
        store = self.reserve(key, layer_idx, end)
        store[0, :, :, start:end] = key
        store[1, :, :, start:end] = value
        self.lengths[layer_idx] = end
        keys, values = store.narrow(3, 0, end).unbind(0)
        return keys, values

    def append(self, both: Tensor, layer: int) -> Tensor:
        """Append a token's key and value (2, B, n_kv, hs) to a layer and return all it holds, (2, B, n_kv, S, hs)."""
        store, at = self.extend(layer), self.lengths[layer] - 1
        store.select(3, at).copy_(both)
        return store.narrow(3, 0, at + 1)

    def extend(self, layer: int) -> Tensor:
        """Make room for one more token in a layer that holds some, and count it; the caller fills it.

        Returns:
            The layer's storage, (2, B, n_kv, capacity, hs); the new token's place is `lengths[layer] - 1`.
        """
        store, end = self.store(layer), self.lengths[layer] + 1
        if store.shape[3] < end:
            store = self.reserve(store[0], layer, end)
        self.lengths[layer] = end
        return store

    def store(self, layer: int) -> Tensor:
        """The storage (2, B, n_kv, capacity, hs) of a layer that holds some tokens."""
        found = self.stores[layer]
        assert found is not None
        return found

    def reserve(self, like: Tensor, layer: int, tokens: int) -> Tensor:
        """A layer's storage with room for `tokens` tokens, in whole blocks."""
        old = self.stores[layer]
        if old is not None and old.shape[3] >= tokens:
            return old
        batch, heads, _, size = like.shape
        shape = (2, batch, heads, -(-tokens // BLOCK) * BLOCK, size)
        new = torch.empty(shape, dtype=like.dtype, device=like.device)
        if new.device.type == "cpu":
            ask_large_pages(new.data_ptr(), new.nbytes)
        if old is not None:
            filled = self.lengths[layer]
            new[:, :, :, :filled] = old[:, :, :, :filled]
        self.stores[layer] = new
        self._token_bytes[layer] = new.nbytes // new.shape[3]
        return new

    def cut(self, layer: int, tokens: int) -> None:
        """Forget a layer's last tokens."""
        self.lengths[layer] -= tokens

    def keep_last(self, layer: int, rows: int) -> None:
        """Of a layer's last `rows` tokens keep only the last one."""
        store, end = self.store(layer), self.lengths[layer]
        if rows > 1:
            store.select(3, end - rows).copy_(store.select(3, end - 1))
            self.cut(layer, rows - 1)

    def clone(self) -> KVCache:
        """A copy with storage of its own: the audit starts from the lane's prefill, which is full by definition."""
        copy = KVCache(len(self.lengths))
        copy.stores = [None if store is None else store.clone() for store in self.stores]
        copy.lengths = list(self.lengths)
        copy._token_bytes = list(self._token_bytes)
        return copy

    def layer_bytes(self) -> list[int]:
        """Bytes of the filled entries of each layer, counted from the tensors."""
        return list(map(operator.mul, self._token_bytes, self.lengths))

    @property
    def nbytes(self) -> int:
        """Bytes of the filled entries of all layers."""
        return sum(self.layer_bytes())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storage that is really held: at most one block a layer more than `nbytes`."""
        return sum(store.untyped_storage().nbytes() for store in self.stores if store is not None)


class HiddenCache:
    """For each skipped layer the one (B, D) vector that its reuse rule needs.

    - `state`: the layer's last output, h[t-1][i+1];
    - `anchor`: its output at the last refresh, h[a][i+1];
    - `residual`: what it added at the last refresh, h[a][i+1] - h[a][i];
    - `skip`: nothing.

    With `part="attention"` the stream after attention, u, stands in place of the output.
    """

    def __init__(self, num_layers: int):
        self.vectors: list[Tensor | None] = [None] * num_layers

    def __getitem__(self, layer: int) -> Tensor:
        vector = self.vectors[layer]
        assert vector is not None  # a full step comes first, and nobody asks under `skip`
        return vector

    def __setitem__(self, layer: int, vector: Tensor | None) -> None:
        self.vectors[layer] = vector
