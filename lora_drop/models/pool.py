"""The models that the page's visitors may choose from, one of them in memory at a time."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from lora_drop.errors import LoraDropError
from lora_drop.models.load import BUNDLED_ID, LoadedModel, ModelInfo, load_model

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
POLL = 0.2  # seconds between two looks at whether a visitor who waits has stopped
WAIT = 120  # seconds that a swap waits for a run on the model that is to make way
SPARE_WAIT = 5  # seconds that a run waits for spare work to make way


def allowed_models(public: bool) -> tuple[str, ...]:
    """The names that visitors may choose from, besides the model that the app starts with.

    `LORA_DROP_MODELS` lists them with commas; the word `presets` stands for `PRESET_MODELS`. Unset, those are offered
    on a machine of one's own, and nothing to the public: there every visitor would fetch models at the owner's cost.
    """
    text = os.environ.get("LORA_DROP_MODELS")
    if text is None:
        return () if public else PRESET_MODELS
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

    A swap first brings the new model's files here (`fetch`), then waits for the runs on the old one, lets it go, and
    reads: two are never held. What needs no weights goes on meanwhile, as no lock is held for any of it. A name
    outside of the list is refused, whoever sends it. Where a load fails, the next request loads what it wants anew.

    Args:
        loaded: the model that the app starts with; it comes first in the list.
        names: further names that may be chosen.
        load: `load_model`, with the operator's device and number type.
        name: what `loaded` was loaded by, if that is not its id: a folder's path.
        fetch: `fetch.fetch`, with the operator's device and number type; unless given, `load` finds its files itself.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        names: Sequence[str] = (),
        load: Callable[[str], LoadedModel] = load_model,
        name: str | None = None,
        fetch: Callable[[str, Callable[[], bool]], Iterator[str]] | None = None,
    ):
        self.first = loaded.id
        self._names = {label_of(other): other for other in (name or loaded.id, *names)}
        self._load, self._fetch = load, fetch
        self._fetching = threading.Lock()
        self._fetched = {loaded.id}
        self._infos = {loaded.id: loaded.info()}
        self._loaded: LoadedModel | None = loaded
        self._at: str | None = loaded.id  # the label of what is in memory
        self._lent = 0
        self._reading = False
        self._wanted = 0  # by runs: those that have the model, and those that wait for it
        self._is_spared = False
        self._changed = threading.Condition()
        self.load_seconds = 0.0  # of the last swap

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

    def fetch(self, label: str | None, should_stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Bring a model's files here, once, while others run; yields in words how far it is.

        Raises:
            LoraDropError: it is not on the list, cannot be had, or `should_stop` said so.
        """
        label = self.check(label)
        while self._fetch and label not in self._fetched:
            if not self._fetching.acquire(timeout=POLL):
                if should_stop():
                    raise LoraDropError(f"Stopped: {label} was not fetched.")
                yield "Another model is fetched first."
                continue
            try:
                if label not in self._fetched:
                    yield from self._fetch(self._names[label], should_stop)
                    self._fetched.add(label)
            finally:
                self._fetching.release()

    @contextmanager
    def lend(self, label: str | None = None, should_stop: Callable[[], bool] = lambda: False) -> Iterator[LoadedModel]:
        """The model, for as long as the block lasts; do not keep it.

        Raises:
            LoraDropError: it is not on the list, cannot be loaded, a run does not give the other one back in time, or
                `should_stop` said so before it was read.
        """
        label = self.check(label)
        with self._changed:
            self._wanted += 1
            self._changed.wait_for(lambda: not self._is_spared, SPARE_WAIT)
        try:
            for _ in self.fetch(label, should_stop):
                pass
            loaded = self._take(label, should_stop)
            try:
                yield loaded
            finally:
                del loaded
                self._give_back()
        finally:
            with self._changed:
                self._wanted -= 1
                self._changed.notify_all()

    @contextmanager
    def spare(self, label: str | None, seconds: float) -> Iterator[tuple[LoadedModel, Callable[[], bool]]]:
        """The model for work that comes after all runs, and a function that turns true once a run wants it.

        The work has to end then, and may be begun again. No model is loaded for it.

        Args:
            seconds: to wait until no run has the model.

        Raises:
            LoraDropError: another model is in memory, or runs have had this one all the time.
        """
        label = self.check(label)
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._wanted or self._is_spared), seconds):
                raise LoraDropError("runs come first, and the device has been busy with them: ask again in a moment.")
            if self._at != label:
                raise LoraDropError(f"{label} is not in memory now: choose it in the models menu first.")
            assert self._loaded is not None  # as `_at` is not
            loaded, self._is_spared = self._loaded, True
            self._lent += 1
        try:
            yield loaded, lambda: self._wanted > 0
        finally:
            del loaded
            self._is_spared = False
            self._give_back()

    def _give_back(self) -> None:
        with self._changed:
            self._lent -= 1
            self._changed.notify_all()

    def _take(self, label: str, should_stop: Callable[[], bool]) -> LoadedModel:
        end = time.monotonic() + WAIT
        with self._changed:
            while self._at != label:
                if self._lent == 0 and not self._reading:
                    self._loaded = self._at = None
                    self._reading = True
                    break
                if should_stop():
                    raise LoraDropError(f"Stopped: {label} was not loaded.")
                if not self._changed.wait(min(POLL, max(0.0, end - time.monotonic()))) and time.monotonic() >= end:
                    raise LoraDropError(f"another model is still in use: ask for {label} again in a minute.")
            else:
                assert self._loaded is not None  # as `_at` is not
                self._lent += 1
                return self._loaded
        lent: Future[LoadedModel] = Future()
        reader = threading.Thread(target=self._read, args=(label, lent), daemon=True)
        reader.start()
        while not lent.done():
            with suppress(TimeoutError):
                lent.exception(POLL)
            if should_stop() and lent.cancel():  # weights cannot be half read: it goes on, for the next visitor
                raise LoraDropError(f"Stopped: {label} was not loaded.")
        reader.join()  # it holds the model as long as it is there
        return lent.result()

    def _read(self, label: str, lent: Future[LoadedModel]) -> None:
        """Load a model where there is none, and lend it if somebody waits. No lock is held, but nobody else reads."""
        loaded, began, wrong = None, time.monotonic(), None
        try:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            loaded = self._load(self._names[label])
        except BaseException as error:
            wrong = error
        with self._changed:
            self._reading = False
            waits = lent.set_running_or_notify_cancel()
            if loaded is not None:
                self._infos[label] = loaded.info()
                self._loaded, self._at, self._lent = loaded, label, self._lent + waits
                self.load_seconds = time.monotonic() - began
            self._changed.notify_all()
        if waits:
            lent.set_exception(wrong) if loaded is None else lent.set_result(loaded)
