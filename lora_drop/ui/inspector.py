"""The token inspector's server side: steps of kept runs and of given traces, read again where nobody else computes.

It comes after all runs: it begins while none has the model, and makes way at its next step once one wants it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.models.place import on_zero_gpu
from lora_drop.models.pool import ModelPool
from lora_drop.run.inspect import Window, inspect, read_again
from lora_drop.run.report.align import side_by_side
from lora_drop.run.report.compare import MOST, compared
from lora_drop.run.report.steps import about_step
from lora_drop.run.trace.trace import MAX_TRACE_BYTES, Trace, parse_trace
from lora_drop.ui.serve.kept import RecentTraces

KEPT_BYTES = 128 * 2**20  # of what layers gave, all readers' together
PATIENCE = 20.0  # seconds that a reader waits for runs to end
READERS = 4  # who may wait at once: each holds one of the server's threads


class Inspector:
    """Answers what a step of a run was; keeps what the layers gave around it for a while, and no model.

    Args:
        traces: where the lines of recent runs are.
        most_bytes: of the tensors that it keeps.
    """

    def __init__(self, pool: ModelPool, traces: RecentTraces, most_bytes: int = KEPT_BYTES):
        self._pool, self._traces, self._most = pool, traces, most_bytes
        self._windows: OrderedDict[tuple[str, str], Window] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = threading.BoundedSemaphore(READERS)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that it keeps."""
        return sum(window.nbytes for window in self._windows.values())

    def inspect(self, run_id: str | None, text: str | None, lane: str, step: int) -> dict[str, Any]:
        """`run.inspect.inspect` of a kept run, or of a trace's text.

        Raises:
            LoraDropError: there is no such run, lane or step; its weights or adapters have changed; or the device is
                busy.
        """
        trace = self._trace(run_id, text)
        about_step(trace, lane, step)
        if on_zero_gpu():
            raise LoraDropError("layers are not read again here: this Space borrows its GPU for whole runs alone.")
        if not self._readers.acquire(blocking=False):
            raise LoraDropError("others are looking into tokens just now: ask again in a moment.")
        try:
            return self._read(trace, lane, step, time.monotonic() + PATIENCE)
        finally:
            self._readers.release()

    def for_page(self, run_id: str, lane: str, step: int) -> dict[str, Any]:
        """`{"found", "error"}`: what `inspect` says; or what the records alone say, and why there is no more.

        `found` is None where there are no records.
        """
        try:
            return {"found": self.inspect(run_id, None, lane, step), "error": None}
        except LoraDropError as error:
            said = str(error)
        try:
            return {"found": about_step(self._trace(run_id, None), lane, step), "error": said}
        except LoraDropError:
            return {"found": None, "error": said}

    def compare(self, run_ids: Any) -> dict[str, Any]:
        """`{"found", "gone"}`: `run.compare.compared` of those runs that are still kept, and the ids of the others."""
        wanted = [one for one in run_ids if isinstance(one, str)][:MOST] if isinstance(run_ids, list) else []
        kept = {one: text for one in wanted if (text := self._traces.text(one))}
        traces = {one: parse_trace(text.encode()) for one, text in kept.items()}
        return {"found": compared(traces), "gone": [one for one in wanted if one not in kept]}

    def align(self, wanted: Any) -> dict[str, Any]:
        """Two answers word by word.

        Args:
            wanted: the ids of run and lane of the one, then of the other.

        Returns:
            `run.align.side_by_side`, or `{"error"}` in one line.
        """
        if not isinstance(wanted, list) or len(wanted) != 4:
            return {"error": "name a run and a lane, twice."}
        texts = []
        for run_id, lane in (wanted[:2], wanted[2:]):
            try:
                trace = self._trace(run_id, None)
            except LoraDropError:
                return {"error": "one of these runs is no longer kept on the server: run and pin it again."}
            if lane not in list(trace.steps):
                return {"error": "that run has no such lane."}
            texts.append(trace.text(lane))
        return side_by_side(*texts)

    def _trace(self, run_id: str | None, text: str | None) -> Trace:
        if text:
            if not isinstance(text, str) or len(text) > MAX_TRACE_BYTES:
                raise LoraDropError(f"trace must be a text of at most {MAX_TRACE_BYTES // 2**20} MiB.")
            return parse_trace(text.encode("utf-8", "replace"))
        kept = self._traces.text(run_id) if isinstance(run_id, str) else None
        if not kept:
            raise LoraDropError("this run is no longer kept on the server: run it again to look inside.")
        return parse_trace(kept.encode())

    def _read(self, trace: Trace, lane: str, step: int, end: float) -> dict[str, Any]:
        """Try until no run comes in between."""
        model = trace.header.model["id"]
        if model not in self._pool.labels:
            raise LoraDropError(f"this run's model, {model[:80]}, is not on offer here: its layers cannot be read.")
        key = hashlib.sha256(f"{trace.header}".encode("utf-8", "replace")).hexdigest(), lane
        while True:
            with self._pool.spare(model, max(0.0, end - time.monotonic())) as (loaded, is_wanted):
                window = self._kept(key, trace, lane, step)
                if window is None:
                    window = read_again(loaded, trace, lane, step, is_wanted)
                if window is not None:
                    self._keep(key, window)
                    return inspect(loaded, trace, lane, step, window)

    def _kept(self, key: tuple[str, str], trace: Trace, lane: str, step: int) -> Window | None:
        with self._lock:
            window = self._windows.get(key)
        return window if window and window.holds(step, trace.token_ids(lane)) else None

    def _keep(self, key: tuple[str, str], window: Window) -> None:
        """The oldest make room; one that is larger than all room is not kept."""
        with self._lock:
            self._windows[key] = window
            self._windows.move_to_end(key)
            while self._windows and self.nbytes > self._most:
                self._windows.popitem(last=False)
