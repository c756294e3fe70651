"""Who holds how much of a bounded store, and whose things make room."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import inf
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Shares(Generic[Key]):
    """Keys with their bytes, by owner. The owner that holds most makes room with its oldest key.

    So an owner who fills the store pushes out nothing of those who hold less. Not thread-safe.

    Args:
        most: the number of keys.
        most_bytes: of all keys together.
    """

    def __init__(self, most: float = inf, most_bytes: float = inf):
        self._most, self._most_bytes = most, most_bytes
        self._keys: dict[str, dict[Key, int]] = {}  # owner -> its keys, the oldest first, with their bytes
        self._bytes: dict[str, int] = {}
        self._owners: dict[Key, str] = {}

    def put(self, key: Key, owner: str, nbytes: int = 0) -> None:
        """Add a key, or make it its owner's newest."""
        self.pop(key)
        self._owners[key] = owner
        self._keys.setdefault(owner, {})[key] = nbytes
        self._bytes[owner] = self._bytes.get(owner, 0) + nbytes

    def grow(self, key: Key, nbytes: int) -> None:
        """Add to a key's bytes."""
        owner = self._owners[key]
        self._keys[owner][key] += nbytes
        self._bytes[owner] += nbytes

    def pop(self, key: Key) -> None:
        """Remove a key, if it is there."""
        if (owner := self._owners.pop(key, None)) is None:
            return
        self._bytes[owner] -= self._keys[owner].pop(key)
        if not self._keys[owner]:
            del self._keys[owner], self._bytes[owner]

    def make_room(self, most: float | None = None) -> Iterator[Key]:
        """Remove keys until the rest fit, at least one; yields each.

        Args:
            most: the number of keys that fit, in place of the usual one.
        """
        most = self._most if most is None else most
        while len(self) > 1 and (len(self) > most or self.nbytes > self._most_bytes):
            key = next(iter(self._keys[self.heaviest(by_bytes=len(self) <= most)]))
            self.pop(key)
            yield key

    def heaviest(self, by_bytes: bool = False) -> str:
        """The owner of most keys, or of most bytes; there must be a key."""
        return max(self._keys, key=lambda one: self._bytes[one] if by_bytes else len(self._keys[one]))

    def count(self, owner: str) -> int:
        """Number of an owner's keys."""
        return len(self._keys.get(owner, ()))

    def owner(self, key: Key) -> str | None:
        """The owner of a key; None if it is not there."""
        return self._owners.get(key)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys."""
        return sum(self._bytes.values())

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._owners))

    def __contains__(self, key: object) -> bool:
        return key in self._owners

    def __len__(self) -> int:
        return len(self._owners)
