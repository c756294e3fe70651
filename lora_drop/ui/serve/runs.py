"""State of visitors' runs: stop flags of active runs, and traces of the latest runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from uuid import uuid4

from lora_drop.run.shares import Shares
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.visits import Visits

OPENED = "opened-"  # begins the ids of runs that came as a file
MOST_TRACES = 64  # latest runs of all visitors together
MOST_BYTES = 256 * 2**20  # most bytes of their traces in memory


def is_opened(run_id: str) -> bool:
    """Whether a run came as a file, so that a stranger may have written it."""
    return run_id.startswith(OPENED)


class Stops:
    """Stop flags, one for each session with a run. A run checks its flag after each step and still sends a summary."""

    def __init__(self) -> None:
        self._flags: dict[str | None, zero.Stop] = {}
        self._lock = threading.Lock()

    def start(self, session: str | None) -> zero.Stop:
        """Return a flag for a new run. It replaces a flag that a dropped connection may have left."""
        with self._lock:
            self._flags[session] = flag = zero.stop_flag()
            return flag

    def end(self, session: str | None, flag: zero.Stop) -> None:
        """Remove a finished run's flag; the flag of a later run of the session stays."""
        with self._lock:
            if self._flags.get(session) is flag:
                del self._flags[session]
            if isinstance(flag, zero.StopFlag):
                flag.end()

    def stop(self, session: str | None) -> None:
        """Set the session's flag, if it has a run."""
        with self._lock:
            if session in self._flags:
                self._flags[session].set()

    def __contains__(self, session: str | None) -> bool:
        return session in self._flags

    def __len__(self) -> int:
        return len(self._flags)


class RecentTraces:
    """Trace lines of the latest runs by run id, for downloads; also of runs under way or cut off.

    An id is a secret of its visitor: 122 random bits. They go with the visit. When there are too many runs or bytes,
    the oldest runs of the address that holds most are dropped.
    """

    def __init__(self, visits: Visits, most: int = MOST_TRACES, most_bytes: int = MOST_BYTES):
        self._runs: Shares[str, tuple[str | None, list[str]]] = Shares(most, most_bytes)  # id -> session and lines
        self._visits, self._lock = visits, threading.Lock()
        visits.ends.append(self._end)

    def begin(self, session: str | None = None, opened: bool = False) -> str:
        """Add a session's new run, or a run that it opened from a file, and return its id."""
        run_id = OPENED * opened + uuid4().hex
        owner = self._visits.address(session) or ""
        with self._lock:
            self._runs.put(run_id, (session, []), owner)
        return run_id

    def add(self, run_id: str, line: str) -> None:
        """Append a line to a run, if it is still stored."""
        with self._lock:
            if run := self._runs.get(run_id):
                run[1].append(line)
                self._runs.grow(run_id, sys.getsizeof(line))

    def _end(self, sessions: Collection[str]) -> None:
        with self._lock:
            for run_id, (session, _) in self._runs.items():
                if session in sessions:
                    self._runs.pop(run_id)

    def text(self, run_id: str) -> str | None:
        """The trace so far, in the format of a trace file; None if it is not stored."""
        with self._lock:
            run = self._runs.get(run_id)
            return None if run is None else "".join(run[1])

    def __len__(self) -> int:
        return len(self._runs)
