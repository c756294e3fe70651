"""Prompts that runs have prefilled: the same prompt with other settings is not prefilled again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection

from lora_drop.decode.step import Prefilled
from lora_drop.models.load import LoadedModel
from lora_drop.run.shares import Shares

MOST_BYTES = 512 * 2**20  # of all cached prompts: 20,000 tokens of the bundled model

Key = tuple[str, int, str, tuple[int, ...]]  # the session, the model, its decoder, the tokens


class PromptCache:
    """Prefilled prompts; the least recently used go first, and a model's go with the model.

    A caller that runs many requests, such as the page, keeps one. Threads may share it.

    Args:
        session: whose prompts these are; another session's are not seen, neither in the answer nor in its time.
        address: who pays for them: the address that holds most makes room.
        of: the cache in which the session has its part.
    """

    def __init__(
        self, most_bytes: int = MOST_BYTES, session: str = "", address: str = "", of: PromptCache | None = None
    ):
        self._most, self._session, self._address = most_bytes, session, address
        self._lock: threading.RLock = (
            of._lock if of else threading.RLock()
        )  # a model may be freed while the lock is held
        self._held: dict[Key, Prefilled] = of._held if of else {}
        self._shares: Shares[Key] = of._shares if of else Shares(most_bytes=most_bytes)
        self._models: dict[int, weakref.ref] = of._models if of else {}

    def part(self, session: str, address: str) -> PromptCache:
        """A session's own prompts in this cache."""
        return PromptCache(self._most, session, address, self)

    @property
    def nbytes(self) -> int:
        """Bytes of the cached prompts, of all sessions."""
        with self._lock:
            return self._shares.nbytes

    def get(self, loaded: LoadedModel, tokens: list[int]) -> Prefilled | None:
        """The prefilled prompt; None if the session has none."""
        with self._lock:
            key = self._key(loaded, tokens)
            if prompt := self._held.get(key):
                self._shares.put(key, self._address, prompt.nbytes)  # the last to go
            return prompt

    def put(self, loaded: LoadedModel, tokens: list[int], prompt: Prefilled) -> None:
        """Cache a prompt, unless it is too large; older ones make room."""
        if prompt.nbytes > self._most:
            return
        with self._lock:
            key = self._key(loaded, tokens)
            model = key[1]
            self._models[model] = weakref.ref(loaded.model, lambda _: self._forget(model))
            self._held[key] = prompt
            self._shares.put(key, self._address, prompt.nbytes)
            for old in self._shares.make_room():
                del self._held[old]

    def end(self, sessions: Collection[str]) -> None:
        """Forget the prompts of sessions."""
        with self._lock:
            self._drop([key for key in self._held if key[0] in sessions])

    def _forget(self, model: int) -> None:
        with self._lock:
            self._models.pop(model, None)
            self._drop([key for key in self._held if key[1] == model])

    def _drop(self, keys: list[Key]) -> None:
        for key in keys:
            self._shares.pop(key)
            del self._held[key]

    def _key(self, loaded: LoadedModel, tokens: list[int]) -> Key:
        return self._session, id(loaded.model), loaded.decoder_name, tuple(tokens)
