"""Visits: which address a session belongs to, and when it is over. What a visit made goes ten minutes later."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lora_drop.run.shares import Shares

SECONDS = 600.0  # after a visit's end, or its last request without an open page, until what it made goes
KNOWN = 4096  # sessions that are remembered; beyond it, the oldest of the address with most is over at once
PAUSE = 5.0  # seconds between two looks for visits that are over


class Visits:
    """The sessions of visitors. Thread-safe.

    Attributes:
        ends: called with the sessions that are over, outside the event loop.
    """

    def __init__(self) -> None:
        self.ends: list[Callable[[set[str]], None]] = []
        self._lock = threading.Lock()
        self._sessions: Shares[str, float] = Shares(KNOWN)  # owned by addresses: when they were last seen
        self._addresses: Shares[str, float] = Shares(KNOWN)
        self._open: Counter[str] = Counter()  # session or address -> its open pages
        self._crowded_out: set[str] = set()

    def seen(self, session: str | None, address: str) -> None:
        """A request came from an address, of a session if it named one."""
        with self._lock:
            now = time.monotonic()
            self._addresses.put(address, now, "")
            if session:
                self._crowded_out.update(self._sessions.put(session, now, address))

    @contextmanager
    def page(self, session: str, address: str) -> Iterator[None]:
        """A page is open for as long as the block lasts."""
        self.seen(session, address)
        with self._lock:
            self._open.update((session, address))
        try:
            yield
        finally:
            self.seen(session, address)
            with self._lock:
                self._open -= Counter((session, address))  # keeps no zeros

    def address(self, session: str | None) -> str | None:
        """The address of a session; None if no request named it."""
        with self._lock:
            return None if session is None else self._sessions.owner(session)

    def is_here(self, address: str) -> bool:
        """Whether a request came from an address, or a page was open there, in the last `SECONDS`."""
        with self._lock:
            return address in self._addresses

    def crowded(self, sessions: Sequence[str]) -> str:
        """The session that makes room for others: the first of the address with most of them."""
        with self._lock:
            owners = [self._sessions.owner(session) or session for session in sessions]
        count = Counter(owners)
        return sessions[owners.index(max(owners, key=count.__getitem__))]

    def sweep(self) -> None:
        """End the visits that are over."""
        limit = time.monotonic() - SECONDS
        with self._lock:
            silent, left = (
                [name for name, last in names.items() if last < limit and not self._open[name]]
                for names in (self._sessions, self._addresses)
            )
            for session in silent:
                self._sessions.pop(session)
            for address in left:
                self._addresses.pop(address)
            over = self._crowded_out.difference(self._sessions).union(silent)
            self._crowded_out = set()
        for end in self.ends:
            end(over)

    def watch(self, while_: Callable[[], bool]) -> None:
        """Sweep in another thread, for as long as the condition holds."""

        def work() -> None:
            while while_():
                time.sleep(PAUSE)
                self.sweep()

        threading.Thread(target=work, name="visits", daemon=True).start()
