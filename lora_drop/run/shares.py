"""A bounded store whose room is shared by owners: who holds most makes room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from math import inf
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Shares(Generic[Key, Value]):
    """Values by key, each with its owner and its bytes. The owner that holds most makes room with its oldest key.

    So an owner who fills the store pushes out nothing of those who hold less. Not thread-safe.

    Args:
        most: how many values in all.
        most_bytes: of all values together.
    """

    def __init__(self, most: float = inf, most_bytes: float = inf):
        self.most, self.most_bytes = most, most_bytes
        self._owners: dict[Key, str] = {}
        self._owned: dict[str, dict[Key, tuple[Value, int]]] = {}  # by owner; its oldest key first
        self._bytes: Counter[str] = Counter()  # by owner

    def put(self, key: Key, value: Value, owner: str, nbytes: int = 0) -> list[Key]:
        """Store a value, its owner's newest, unless it alone is too large; returns the keys that made room."""
        self.pop(key)
        if nbytes > self.most_bytes:
            return []
        self._owners[key] = owner
        self._owned.setdefault(owner, {})[key] = value, nbytes
        self._bytes[owner] += nbytes
        return self._make_room()

    def grow(self, key: Key, nbytes: int) -> list[Key]:
        """Count more bytes of a value; returns the keys that made room."""
        owner = self._owners[key]
        value, before = self._owned[owner][key]
        self._owned[owner][key] = value, before + nbytes
        self._bytes[owner] += nbytes
        return self._make_room()

    def _make_room(self) -> list[Key]:
        """Remove what is too much; the last key always stays."""
        gone = []
        while len(self) > 1 and (len(self) > self.most or self.nbytes > self.most_bytes):
            gone.append(next(iter(self._owned[self.heaviest(by_bytes=len(self) <= self.most)])))
            self.pop(gone[-1])
        return gone

    def heaviest(self, by_bytes: bool = False) -> str:
        """The owner of most keys, or of most bytes; there must be a key."""
        return max(self._owned, key=lambda owner: self._bytes[owner] if by_bytes else len(self._owned[owner]))

    def pop(self, key: Key) -> None:
        """Remove a key, if it is there."""
        if (owner := self._owners.pop(key, None)) is None:
            return
        self._bytes[owner] -= self._owned[owner].pop(key)[1]
        if not self._owned[owner]:
            del self._owned[owner], self._bytes[owner]

    def get(self, key: Key) -> Value | None:
        """The value of a key; None if it is not there."""
        owner = self._owners.get(key)
        return None if owner is None else self._owned[owner][key][0]

    def owner(self, key: Key) -> str | None:
        """The owner of a key; None if it is not there."""
        return self._owners.get(key)

    def count(self, owner: str) -> int:
        """Number of an owner's keys."""
        return len(self._owned.get(owner, ()))

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self._bytes.total()

    def items(self) -> list[tuple[Key, Value]]:
        """All keys with their values."""
        return [(key, self._owned[owner][key][0]) for key, owner in self._owners.items()]

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._owners))

    def __contains__(self, key: object) -> bool:
        return key in self._owners

    def __len__(self) -> int:
        return len(self._owners)
