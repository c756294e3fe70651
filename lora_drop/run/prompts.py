"""Prompts that runs have prefilled: the same prompt with other settings is not prefilled again."""

from __future__ import annotations

import threading
import weakref

from lora_drop.decode.step import Prefilled
from lora_drop.models.load import LoadedModel

MOST_BYTES = 512 * 2**20  # of all cached prompts: 20,000 tokens of the bundled model

Key = tuple[int, str, tuple[int, ...]]  # the model, its decoder, the tokens


class PromptCache:
    """Prefilled prompts; the least recently used go first, and a model's go with the model.

    A caller that runs many requests, such as the page, keeps one. Threads may share it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most, self._lock = most_bytes, threading.RLock()  # a model may be freed while the lock is held
        self._held: dict[Key, Prefilled] = {}  # the least recently used first
        self._models: dict[int, weakref.ref] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the cached prompts."""
        with self._lock:
            return sum(prompt.nbytes for prompt in self._held.values())

    def get(self, loaded: LoadedModel, tokens: list[int]) -> Prefilled | None:
        """The prefilled prompt; None if the cache has none."""
        with self._lock:
            key = _key(loaded, tokens)
            if prompt := self._held.pop(key, None):
                self._held[key] = prompt  # the last to go
            return prompt

    def put(self, loaded: LoadedModel, tokens: list[int], prompt: Prefilled) -> None:
        """Cache a prompt, unless it is too large; the oldest ones make room."""
        if prompt.nbytes > self._most:
            return
        with self._lock:
            key = _key(loaded, tokens)
            self._models[key[0]] = weakref.ref(loaded.model, lambda _: self._forget(key[0]))
            self._held.pop(key, None)
            self._held[key] = prompt
            while self.nbytes > self._most:
                del self._held[next(iter(self._held))]

    def _forget(self, model: int) -> None:
        with self._lock:
            self._models.pop(model, None)
            for key in [key for key in self._held if key[0] == model]:
                del self._held[key]


def _key(loaded: LoadedModel, tokens: list[int]) -> Key:
    return id(loaded.model), loaded.decoder_name, tuple(tokens)
