"""The models that the page's visitors can choose from, one of them in memory at a time."""

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
from lora_drop.models.named import NAMED, checked_file

# The menu's default; the last two are gated on the Hub.
PRESET_MODELS = (
    "bundled",
    *NAMED,
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
WAIT = 120  # seconds that a swap waits for a run on the old model
SPARE_WAIT = 5  # seconds that a run waits for spare work to end


def allowed_models(public: bool) -> tuple[str, ...]:
    """The names that visitors can choose from, besides the model that the app starts with.

    `LORA_DROP_MODELS` lists them with commas; the word `presets` means `PRESET_MODELS`. Unset, a private page offers
    those, and a public one what its owner has fetched by name: other models every visitor would fetch at their cost.
    """
    text = os.environ.get("LORA_DROP_MODELS")
    if text is None:
        return tuple(name for name in NAMED if checked_file(NAMED[name])) if public else PRESET_MODELS
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(n for name in names for n in (PRESET_MODELS if name == PRESETS_WORD else (name,)))


def label_of(name: str) -> str:
    """The menu's entry for a name: the id of the loaded model, never a path."""
    if name == "bundled":
        return BUNDLED_ID
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


class ModelPool:
    """Lends the one model in memory, and swaps it for another one on request.

    A swap first downloads the new model's files (`fetch`), then waits for the runs on the old one, frees it, and
    reads: two are never in memory. Calls that need no weights go on meanwhile, as no lock is held for any of it. Names
    outside of the list are refused. After a failed load the next request loads its own model.

    Args:
        loaded: the model that the app starts with; it comes first in the list.
        names: further names that can be chosen.
        load: `load_model`, with the operator's device and number type.
        name: the name that `loaded` was loaded by, if that is not its id: a folder's path.
        fetch: `load.fetch`, with the operator's device and number type; without it, `load` downloads the files.
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
        self._at: str | None = loaded.id  # the label of the model in memory
        self._lent = 0
        self._reading = False
        self._wanted = 0  # runs that have the model or wait for it
        self._is_spared = False
        self._waiting = 0  # spare work that waits for a moment without runs
        self._changed = threading.Condition()
        self.load_seconds = 0.0  # of the last swap

    @property
    def labels(self) -> tuple[str, ...]:
        """The choices, the first model first."""
        return tuple(self._names)

    @property
    def at_hand(self) -> str | None:
        """The label of the model in memory; None while another one is read."""
        return self._at

    def check(self, label: str | None) -> str:
        """A label of the list; None is the first model. Raises LoraDropError for any other value."""
        if label is None:
            return self.first
        if not isinstance(label, str) or label not in self._names:
            raise LoraDropError(f"model must be one of {', '.join(self._names)}; got {str(label)[:80]!r}.")
        return label

    def is_at_hand(self, label: str | None) -> bool:
        """True if the model is in memory."""
        return self.check(label) == self._at

    def is_known(self, label: str | None) -> bool:
        """True if `info` has the model."""
        return self.check(label) in self._infos

    def info(self, label: str | None) -> ModelInfo:
        """A model that was in memory at least once, without its weights. Raises LoraDropError for others."""
        label = self.check(label)
        if label not in self._infos:
            raise LoraDropError(
                f"{label} was not loaded here yet: choose it on the page, or call generate with it once."
            )
        return self._infos[label]

    def fetch(self, label: str | None, should_stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Download a model's files, once, while others run; yields the progress in words.

        Raises:
            LoraDropError: it is not on the list, cannot be downloaded, or `should_stop` returned true.
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
                `should_stop` returned true before it was read.
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
    def spare(
        self, label: str | None, seconds: float, is_last: bool = False
    ) -> Iterator[tuple[LoadedModel, Callable[[], bool]]]:
        """The model for work that gives way to runs, and a function that returns true once a run waits for it.

        The work has to end then, and can start again later. No model is loaded for it.

        Args:
            seconds: the longest wait for a moment without runs.
            is_last: the work gives way to other spare work too.

        Raises:
            LoraDropError: another model is in memory, or runs used this one all the time.
        """
        label = self.check(label)

        def is_wanted() -> bool:
            return self._wanted > 0 or (is_last and self._waiting > 0)

        with self._changed:
            self._waiting += not is_last
            is_free = self._changed.wait_for(lambda: not (is_wanted() or self._is_spared), seconds)
            self._waiting -= not is_last
            if not is_free:
                raise LoraDropError("runs come first, and the device is busy with them: ask again in a moment.")
            if self._at != label:
                raise LoraDropError(f"{label} is not in memory now: choose it in the models menu first.")
            assert self._loaded is not None  # as `_at` is not
            loaded, self._is_spared = self._loaded, True
            self._lent += 1
        try:
            yield loaded, is_wanted
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
            if should_stop() and lent.cancel():  # loading goes on, for the next visitor
                raise LoraDropError(f"Stopped: {label} was not loaded.")
        reader.join()  # the thread would hold the model
        return lent.result()

    def _read(self, label: str, lent: Future[LoadedModel]) -> None:
        """Load a model into the empty pool, and lend it to the visitor who waits. `_reading` keeps others from it."""
        loaded, start, failure = None, time.monotonic(), None
        try:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            loaded = self._load(self._names[label])
        except BaseException as error:
            failure = error
        with self._changed:
            self._reading = False
            waits = lent.set_running_or_notify_cancel()
            if loaded is not None:
                self._infos[label] = loaded.info()
                self._loaded, self._at, self._lent = loaded, label, self._lent + waits
                self.load_seconds = time.monotonic() - start
            self._changed.notify_all()
        if waits:
            lent.set_exception(failure) if loaded is None else lent.set_result(loaded)
