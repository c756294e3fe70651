"""Prompts that runs have prefilled: the same prompt with other settings is not prefilled again."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Collection

from transformers import PreTrainedModel

from lora_drop.decode.step import Prefilled
from lora_drop.models.load import LoadedModel
from lora_drop.run.shares import Shares

MOST_BYTES = 512 * 2**20  # of all cached prompts: 20,000 tokens of the bundled model

Key = tuple[str, int, str, tuple[int, ...]]  # the session, the model, its decoder, the tokens


class PromptCache:
    """Prefilled prompts; the least recently used go first, and a model's go with the model.

    A caller that runs many requests, such as the page, keeps one. Threads may share it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._prompts: Shares[Key, Prefilled] = Shares(most_bytes=most_bytes)
        self._models: dict[int, weakref.ref[PreTrainedModel]] = {}
        self._lock = threading.RLock()  # a model may be freed while it is held
        self._session = self._address = ""

    def part(self, session: str, address: str) -> PromptCache:
        """A session's prompts in this cache: another's are not seen, neither in an answer nor in its time.

        Args:
            address: who pays for them: the address that holds most makes room.
        """
        part = copy.copy(self)
        part._session, part._address = session, address
        return part

    def get(self, loaded: LoadedModel, tokens: list[int]) -> Prefilled | None:
        """The prefilled prompt; None if the session has none."""
        with self._lock:
            key = self._key(loaded, tokens)
            if prompt := self._prompts.get(key):
                self._prompts.put(key, prompt, self._address, prompt.nbytes)  # the last to go
            return prompt

    def put(self, loaded: LoadedModel, tokens: list[int], prompt: Prefilled) -> None:
        """Cache a prompt, unless it is too large; older ones make room."""
        with self._lock:
            key = self._key(loaded, tokens)
            model = key[1]
            self._models[model] = weakref.ref(loaded.model, lambda _: self._forget(model))
            self._prompts.put(key, prompt, self._address, prompt.nbytes)

    def end(self, sessions: Collection[str]) -> None:
        """Forget the prompts of sessions."""
        self._drop(lambda key: key[0] in sessions)

    def _forget(self, model: int) -> None:
        self._models.pop(model, None)
        self._drop(lambda key: key[1] == model)

    def _drop(self, goes: Callable[[Key], bool]) -> None:
        with self._lock:
            for key in filter(goes, self._prompts):
                self._prompts.pop(key)

    def _key(self, loaded: LoadedModel, tokens: list[int]) -> Key:
        return self._session, id(loaded.model), loaded.decoder_name, tuple(tokens)
