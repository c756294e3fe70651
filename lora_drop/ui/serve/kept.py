"""State that the server keeps for its visitors: stop flags of active runs, and the latest runs' traces."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from uuid import uuid4

from lora_drop.ui.serve import space as zero

OPENED = "opened-"  # begins the ids of runs that came as a file
KEPT_TRACES = 64  # latest runs of all visitors together
KEPT_BYTES = 256 * 2**20  # most bytes of their traces in memory


def is_opened(run_id: str) -> bool:
    """Whether a run came as a file: what is in it is a stranger's."""
    return run_id.startswith(OPENED)


class Stops:
    """Stop flags, one for each session with a run. A run checks its flag after each step and still sends a summary."""

    def __init__(self) -> None:
        self._flags: dict[str | None, zero.Stop] = {}
        self._lock = threading.Lock()

    def start(self, session: str | None) -> zero.Stop:
        """Return a flag for a new run. It replaces one that a dropped connection may have left."""
        with self._lock:
            self._flags[session] = flag = zero.stop_flag()
            return flag

    def end(self, session: str | None, flag: zero.Stop) -> None:
        """Remove a finished run's flag; a later run of the session keeps its own."""
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

    An id is a random 128-bit secret of its visitor. The oldest runs are dropped when there are too many runs or bytes;
    the newest is always kept.
    """

    def __init__(self, most: int = KEPT_TRACES, most_bytes: int = KEPT_BYTES):
        self._lines: OrderedDict[str, list[str]] = OrderedDict()
        self.nbytes = 0  # of the lines in memory
        self._lock = threading.Lock()
        self._most, self._most_bytes = most, most_bytes

    def begin(self, opened: bool = False) -> str:
        """Add a new run, or one that was opened, and return its id."""
        run_id = OPENED * opened + uuid4().hex
        with self._lock:
            self._lines[run_id] = []
            self._make_room()
        return run_id

    def add(self, run_id: str, line: str) -> None:
        """Append a line to a run, if it is still kept."""
        with self._lock:
            if run_id in self._lines:
                self._lines[run_id].append(line)
                self.nbytes += sys.getsizeof(line)
                self._make_room()

    def _make_room(self) -> None:
        while len(self._lines) > 1 and (len(self._lines) > self._most or self.nbytes > self._most_bytes):
            _, lines = self._lines.popitem(last=False)
            self.nbytes -= sum(map(sys.getsizeof, lines))

    def text(self, run_id: str) -> str | None:
        """The trace so far, in the format of a trace file; None if it is not kept."""
        with self._lock:
            lines = self._lines.get(run_id)
            return None if lines is None else "".join(lines)

    def __len__(self) -> int:
        return len(self._lines)
