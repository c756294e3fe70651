"""Server side of the token inspector: recompute the layers of a step, of a stored run or of a trace's text.

Runs have precedence: a reading begins while no run uses the model, and stops at its next step when a run wants it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from functools import partial
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.models.place import on_zero_gpu
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.reading import TOGETHER
from lora_drop.run.inspect import Window, inspect, read_again
from lora_drop.run.race import by_owner
from lora_drop.run.report.compare import MOST, compared
from lora_drop.run.report.steps import check_step
from lora_drop.run.shares import Shares
from lora_drop.run.trace.records import Header, StepRecord
from lora_drop.run.trace.trace import Trace
from lora_drop.ui.serve.gpu import watched
from lora_drop.ui.serve.gradio_private import address_of_call
from lora_drop.ui.serve.reader import Reader
from lora_drop.ui.serve.runs import RecentTraces, is_opened

MOST_BYTES = 128 * 2**20  # tensors of recent windows, of all readers together
PATIENCE = 20.0  # seconds that a reader waits for runs to end


class Inspector:
    """Inspects steps of runs, and caches the layers' states around them.

    Args:
        traces: the lines of recent runs.
        reader: parses the traces, those of strangers in another process.
        most_bytes: most bytes of cached tensors.
    """

    def __init__(self, pool: ModelPool, traces: RecentTraces, reader: Reader, most_bytes: int = MOST_BYTES):
        self._pool, self._traces, self._reader = pool, traces, reader
        self._windows: Shares[tuple[str, str], Window] = Shares(most_bytes=most_bytes)  # owned by addresses
        self._lock = threading.Lock()

    def inspect(self, run_id: str | None, text: str | None, lane: str, step: int) -> dict[str, Any]:
        """Inspect a step of a stored run or of a trace's text (`run.inspect.inspect`).

        Raises:
            LoraDropError: there is no such run, lane or step, the weights or adapters have changed, or the device is
                busy.
        """
        recorded = self._recorded(run_id, text, lane, step)
        if on_zero_gpu():
            raise LoraDropError("layers cannot be inspected here: this Space borrows its GPU for whole runs only.")
        return self._read(recorded, time.monotonic() + PATIENCE)

    def for_page(self, run_id: str, lane: str, step: int) -> dict[str, Any]:
        """Inspect a step for the page.

        Returns:
            `step` and `error`. Where `inspect` fails, `error` has the reason and `step` the facts in the records
            alone, or None without records.
        """
        try:
            return {"step": self.inspect(run_id, None, lane, step), "error": None}
        except LoraDropError as error:
            reason = str(error)
        try:
            return {"step": self._recorded(run_id, None, lane, step)["about"], "error": reason}
        except LoraDropError:
            return {"step": None, "error": reason}

    def compare(self, run_ids: Any) -> dict[str, Any]:
        """Compare runs.

        Returns:
            `compared`, from `run.report.compare`, of the runs that are still stored; and `gone`, the other ids.
            Or `error` in one line.
        """
        ids = [run_id for run_id in run_ids if isinstance(run_id, str)][:MOST] if isinstance(run_ids, list) else []
        stored = [run_id for run_id in ids if self._traces.text(run_id)]
        try:
            sides = {run_id: self._of_run(run_id, "compare") for run_id in stored}
        except LoraDropError as error:
            return {"error": str(error)}
        return {"compared": compared(sides), "gone": [run_id for run_id in ids if run_id not in stored]}

    def align(self, run: Any, lane: Any, other_run: Any, other_lane: Any) -> dict[str, Any]:
        """Align two answers word by word, each the answer of a run's lane.

        Returns:
            The result of `run.report.align.side_by_side`, or `error` in one line.
        """
        try:
            texts = [
                self._of_run(*answer).encode("utf-8", "replace")
                for answer in ((run, "text", lane), (other_run, "text", other_lane))
            ]
            aligned: dict[str, Any] = self._reader.ask(
                "align", *texts, trusted=not any(map(is_opened, (run, other_run)))
            )
            return aligned
        except LoraDropError as error:
            return {"error": str(error)}

    def _of_run(self, run_id: Any, job: str, *arguments: Any) -> Any:
        """The answer to a job on a run. Raises LoraDropError if the run is gone, or the job does not fit it."""
        text = self._traces.text(run_id) if isinstance(run_id, str) else None
        if not text:
            raise LoraDropError("the server no longer keeps this run: run it again, or open its file again.")
        return self._reader.ask(job, text.encode(), arguments=arguments, trusted=not is_opened(run_id))

    def _recorded(self, run_id: str | None, text: Any, lane: str, step: int) -> dict[str, Any]:
        """The steps of a lane (`exports.reading.steps_of`), with the facts of the asked step as `about`."""
        first = step - step % TOGETHER if type(step) is int and step > 0 else step
        if not text:
            recorded = self._of_run(run_id, "steps", lane, first)
        elif isinstance(text, str):
            recorded = self._reader.ask("steps", text.encode("utf-8", "replace"), arguments=(lane, first))
        else:
            raise LoraDropError("trace must be a text.")
        check_step(lane, step, len(recorded["steps"]))
        return {**recorded, "about": recorded["about"][step - first]}

    def _read(self, recorded: dict[str, Any], end: float) -> dict[str, Any]:
        """Inspect the step, and start again whenever a run takes the model in between.

        Args:
            end: when to give up waiting for runs, by `time.monotonic`.
        """
        header, lane, step = Header(**recorded["header"]), recorded["about"]["lane"], recorded["about"]["step"]
        trace = Trace(header)
        for i, (kind, token_id) in enumerate(recorded["steps"]):
            trace.steps[lane].append(StepRecord(lane, i, token_id, "", kind, [], 0.0, 0, None))
        model = header.model["id"]
        if model not in self._pool.labels:
            raise LoraDropError(f"this server does not have the run's model, {model[:80]}: its layers cannot be read.")
        key = hashlib.sha256(f"{header}".encode("utf-8", "replace")).hexdigest(), lane
        while True:
            wait = max(0.0, end - time.monotonic())
            with self._pool.spare(model, wait) as (loaded, is_wanted), watched(loaded.device):
                with self._lock:
                    window = self._windows.get(key)
                if window is None or not window.holds(step, trace.token_ids(lane)):
                    window = by_owner(loaded.device, partial(read_again, loaded, trace, lane, step, is_wanted))
                if window is not None:
                    with self._lock:
                        self._windows.put(key, window, address_of_call(), window.nbytes)
                    return by_owner(loaded.device, partial(inspect, loaded, header, recorded["about"], window))
