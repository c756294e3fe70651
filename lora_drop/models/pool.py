"""The models that the page's visitors may choose from, one of them in memory at a time."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lora_drop.errors import LoraDropError
from lora_drop.models.load import BUNDLED_ID, LoadedModel, ModelInfo, load_model
from lora_drop.runtime import in_space

# What the menu offers where nothing else is said; the last two are gated on the Hub.
PRESET_MODELS = (
    "bundled",
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-14B-Instruct",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Meta-Llama-3-8B-Instruct",
)
PRESETS_WORD = "presets"  # in LORA_DROP_MODELS: all of these
WAIT = 120  # seconds that a swap waits for a run on the model that is to make way


def allowed_models() -> tuple[str, ...]:
    """The names that visitors may choose from, besides the model that the app starts with.

    `LORA_DROP_MODELS` lists them with commas; the word `presets` stands for `PRESET_MODELS`. Unset, those are offered
    on a machine of one's own, and nothing in a Space: there every visitor would fetch models at its owner's cost.
    """
    text = os.environ.get("LORA_DROP_MODELS")
    if text is None:
        return () if in_space() else PRESET_MODELS
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(n for name in names for n in (PRESET_MODELS if name == PRESETS_WORD else (name,)))


def label_of(name: str) -> str:
    """What visitors see of a name, and choose by: the id that the model has once it is loaded, never a path."""
    if name == "bundled":
        return BUNDLED_ID
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


class ModelPool:
    """Lends the one model in memory, and swaps it for another one on request.

    A swap waits for the runs on the old model, and lets it go before the new one is read: two are never held. A name
    outside of the list is refused, whoever sends it. Where a load fails, the next request loads what it wants anew.

    Args:
        loaded: the model that the app starts with; it comes first in the list.
        names: further names that may be chosen.
        load: `load_model`, with the operator's device and number type.
        name: what `loaded` was loaded by, if that is not its id: a folder's path.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        names: Sequence[str] = (),
        load: Callable[[str], LoadedModel] = load_model,
        name: str | None = None,
    ):
        self.first = loaded.id
        self._names = {label_of(other): other for other in (name or loaded.id, *names)}
        self._load = load
        self._infos = {loaded.id: loaded.info()}
        self._loaded: LoadedModel | None = loaded
        self._at: str | None = loaded.id  # the label of what is in memory
        self._lent = 0
        self._changed = threading.Condition()

    @property
    def labels(self) -> tuple[str, ...]:
        """The choices, the first model first."""
        return tuple(self._names)

    def check(self, label: str | None) -> str:
        """A choice, None being the first model. Raises LoraDropError if it is none of the list."""
        if label is None:
            return self.first
        if not isinstance(label, str) or label not in self._names:
            raise LoraDropError(f"model must be one of {', '.join(self._names)}; got {str(label)[:80]!r}.")
        return label

    def is_at_hand(self, label: str | None) -> bool:
        """True if the model is in memory, so that nothing has to be loaded for it."""
        return self.check(label) == self._at

    def is_known(self, label: str | None) -> bool:
        """True if `info` has it."""
        return self.check(label) in self._infos

    def info(self, label: str | None) -> ModelInfo:
        """What is known of a model that was in memory at least once. Raises LoraDropError for others."""
        label = self.check(label)
        if label not in self._infos:
            raise LoraDropError(
                f"{label} was not loaded here yet: choose it on the page, or call generate with it once."
            )
        return self._infos[label]

    @contextmanager
    def lend(self, label: str | None = None) -> Iterator[LoadedModel]:
        """The model, for as long as the block lasts; do not keep it.

        Raises:
            LoraDropError: it is not on the list, cannot be loaded, or a run does not give the other one back in time.
        """
        loaded = self._take(self.check(label))
        try:
            yield loaded
        finally:
            del loaded
            with self._changed:
                self._lent -= 1
                self._changed.notify_all()

    def _take(self, label: str) -> LoadedModel:
        with self._changed:
            while self._at != label:
                if not self._changed.wait_for(lambda: self._lent == 0, WAIT):
                    raise LoraDropError(f"{self._at} is still in use: ask for {label} again in a minute.")
                if self._at != label:  # it was not swapped by somebody else meanwhile
                    self._swap(label)
            assert self._loaded is not None  # as `_at` is not
            self._lent += 1
            return self._loaded

    def _swap(self, label: str) -> None:
        self._loaded = self._at = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        loaded = self._load(self._names[label])
        self._infos[label] = loaded.info()
        self._loaded, self._at = loaded, label
