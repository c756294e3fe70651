"""What the server keeps of its visitors: a stop flag while a run runs, and the last runs' lines for downloads."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from uuid import uuid4

from lora_drop.ui.serve import space as zero

KEPT_TRACES = 64  # of the last runs, whoever's, for their downloads
KEPT_BYTES = 256 * 2**20  # and no more of them than this


class Stops:
    """Soft stop flags, one a session while it runs: the run asks after each step and still delivers its summary."""

    def __init__(self) -> None:
        self._flags: dict[str | None, threading.Event | zero.StopFlag] = {}
        self._lock = threading.Lock()

    def start(self, session: str | None) -> threading.Event | zero.StopFlag:
        """A flag for a new run, in the place of one that a dropped connection may have left behind."""
        with self._lock:
            self._flags[session] = flag = zero.stop_flag()
            return flag

    def end(self, session: str | None, flag: threading.Event | zero.StopFlag) -> None:
        """The run with this flag is over. The session's next one may have started already: its flag stays."""
        with self._lock:
            if self._flags.get(session) is flag:
                del self._flags[session]
            if isinstance(flag, zero.StopFlag):
                flag.end()

    def stop(self, session: str | None) -> None:
        with self._lock:
            if session in self._flags:
                self._flags[session].set()

    def __contains__(self, session: str | None) -> bool:
        return session in self._flags

    def __len__(self) -> int:
        return len(self._flags)


class RecentTraces:
    """The lines of the last runs by their ids, also of one that still streams or was cut off, for downloads.

    An id is a visitor's own secret of 128 bits. The oldest runs make room where there are too many, or their lines
    together are too long; the newest is always kept.
    """

    def __init__(self, most: int = KEPT_TRACES, most_bytes: int = KEPT_BYTES):
        self._lines: OrderedDict[str, list[str]] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._most, self._most_bytes = most, most_bytes

    def begin(self) -> str:
        """A new run; returns its id."""
        run_id = uuid4().hex
        with self._lock:
            self._lines[run_id], self._bytes[run_id] = [], 0
            self._make_room()
        return run_id

    def add(self, run_id: str, line: str) -> None:
        """Append a line to a run; nothing if it has made room for others."""
        with self._lock:
            if run_id in self._lines:
                self._lines[run_id].append(line)
                self._bytes[run_id] += sys.getsizeof(line)
                self._make_room()

    def _make_room(self) -> None:
        while len(self._lines) > 1 and (len(self._lines) > self._most or self.nbytes > self._most_bytes):
            oldest, _ = self._lines.popitem(last=False)
            del self._bytes[oldest]

    @property
    def nbytes(self) -> int:
        """Bytes that the lines take in memory."""
        return sum(self._bytes.values())

    def text(self, run_id: str) -> str | None:
        """The trace so far, as the file has it; None if it is not kept (any more)."""
        with self._lock:
            lines = self._lines.get(run_id)
            return None if lines is None else "".join(lines)

    def __len__(self) -> int:
        return len(self._lines)
