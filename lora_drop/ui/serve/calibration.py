"""Calibrate the models of the page in the background: a step at a time, while no visitor uses the device.

A run, a sweep or a look inside a token comes first: the work ends after its current step and goes on later.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.calibrate import Calibration
from lora_drop.models.load import ModelInfo
from lora_drop.models.place import on_zero_gpu
from lora_drop.models.pool import ModelPool
from lora_drop.run.race import by_owner
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.calibration import gain_here, speeds_here, write_calibration
from lora_drop.run.results.files import CALIBRATION_SECONDS
from lora_drop.run.results.store import Row
from lora_drop.ui.serve.environment import read_variable

PAUSE = 2.0  # seconds between two looks for a quiet moment
TRIES = 3  # of a model whose speeds are too noisy to tell, each twice as long as the try before
AGAIN = 600.0  # seconds until the next try


def calibrates() -> bool:
    """Whether the page measures: not with LORA_DROP_CALIBRATE=0, nor on ZeroGPU, where the time is its visitors'.

    Raises:
        LoraDropError: the variable is neither 1 nor 0.
    """
    return read_variable("LORA_DROP_CALIBRATE", bool, True, "1 or 0") and not on_zero_gpu()


class Background:
    """The work of a thread that calibrates whichever model is in memory."""

    def __init__(self, pool: ModelPool):
        self._pool = pool
        self._tries: Counter[str] = Counter()  # by label
        self._next: dict[str, float] = {}  # by label: when to look again (monotonic); settled models: never
        self._current: tuple[str, Calibration] | None = None

    def start(self) -> None:
        """Begin in a thread that ends with the process."""
        threading.Thread(target=self._work, name="calibration", daemon=True).start()

    def _work(self) -> None:
        while True:
            time.sleep(PAUSE)
            label = self._pool.at_hand
            if label is not None and time.monotonic() >= self._next.get(label, 0.0):
                self.advance(label)

    def advance(self, label: str) -> None:
        """Measure a model until it is done or a visitor comes, and write the file at the end."""
        info = self._pool.info(label)
        try:
            if self._current is None or self._current[0] != label:
                self._current = None
                if _noisy(list(speeds_here(info).values()), info) == 0:
                    self._next[label] = float("inf")
                    return
                self._current = label, Calibration(info, CALIBRATION_SECONDS * 2 ** self._tries[label])
            calibration = self._current[1]
            if self._go_on(label, calibration) and calibration.is_done:
                self._finish(label, info, calibration.rows())
        except LoraDropError:  # settings that do not fit this model, no memory, a folder that cannot be written
            self._next[label], self._current = float("inf"), None

    def _go_on(self, label: str, calibration: Calibration) -> bool:
        """Measure until a visitor comes; False if there was no quiet moment. Raises LoraDropError: see `go_on`."""
        with ExitStack() as stack:
            try:
                loaded, is_wanted = stack.enter_context(self._pool.spare(label, PAUSE, is_last=True))
            except LoraDropError:
                return False
            by_owner(loaded.device, partial(calibration.go_on, loaded, is_wanted))
            del loaded  # before the pool has it back
        return True

    def _finish(self, label: str, info: ModelInfo, rows: list[Row]) -> None:
        self._current = None
        self._tries[label] += 1
        noisy = _noisy(rows, info)
        if noisy <= _noisy(list(speeds_here(info).values()), info):
            write_calibration(info, rows)
        self._next[label] = time.monotonic() + AGAIN if noisy and self._tries[label] < TRIES else float("inf")


def _noisy(rows: list[Row], info: ModelInfo) -> int:
    """The number of presets whose speed is not clear from these rows."""
    clear = {row["lane"] for row in rows if gain_here(row)}
    return len(presets_of(info).keys() - clear)
