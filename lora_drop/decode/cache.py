"""K/V cache of a lane, in which layers may hold different numbers of tokens."""

from __future__ import annotations

import copy
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

    A skipped layer may write nothing at LoRA steps, so layers hold different numbers of tokens. Entries are rotated
    to their true position before they are stored, so gaps do no harm. transformers' attention modules call `update`.

    Shapes: B batch, nkv K/V heads, T tokens, S tokens that a layer holds, hs head size.

    Attributes:
        stores: a layer's keys and values in one tensor (2, B, nkv, capacity, hs), so that a decode step writes both at
            once; None while it holds nothing.
        lengths: S of each layer.
    """

    def __init__(self, num_layers: int):
        self.stores: list[Tensor | None] = [None] * num_layers
        self.lengths = [0] * num_layers
        self._token_bytes = [0] * num_layers  # of one token's key and value, counted from the tensors

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, nkv, T, hs) to a layer; return all that it holds, (B, nkv, S, hs) each.

        `args` and `kwargs` are for transformers' other kinds of cache and are ignored.
        """
        start, end = self.lengths[layer_idx], self.lengths[layer_idx] + key.shape[2]
        store = self.reserve(key, layer_idx, end)
        store[0, :, :, start:end] = key
        store[1, :, :, start:end] = value
        self.lengths[layer_idx] = end
        return self.filled(layer_idx)

    def filled(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (B, nkv, S, hs) each."""
        keys, values = self.store(layer).narrow(3, 0, self.lengths[layer]).unbind(0)
        return keys, values

    def store(self, layer: int) -> Tensor:
        """Storage (2, B, nkv, capacity, hs) of a layer that holds some tokens."""
        store = self.stores[layer]
        assert store is not None
        return store

    def reserve(self, like: Tensor, layer: int, tokens: int) -> Tensor:
        """Make room for `tokens` tokens in a layer, in whole blocks; return its storage.

        Args:
            like: a key (B, nkv, T, hs), for the shape, number type and device.
        """
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
        """Keep only the last one of a layer's last `rows` tokens."""
        store, end = self.store(layer), self.lengths[layer]
        if rows > 1:
            store.select(3, end - rows).copy_(store.select(3, end - 1))
            self.cut(layer, rows - 1)

    def clone(self) -> KVCache:
        """Copy with separate storage."""
        return copy.deepcopy(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the filled entries of all layers, counted from the tensors."""
        return sum(map(operator.mul, self._token_bytes, self.lengths))

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storage: at most one block a layer more than `nbytes`."""
        return sum(store.untyped_storage().nbytes() for store in self.stores if store is not None)
