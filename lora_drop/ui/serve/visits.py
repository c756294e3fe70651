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
        self._sessions: Shares[str] = Shares(KNOWN)  # owned by addresses
        self._last: dict[str, float] = {}  # session or address -> when it was last seen, on the monotonic clock
        self._open: Counter[str] = Counter()  # session or address -> its open pages

    def seen(self, session: str, address: str) -> None:
        """A request of a session came from an address."""
        with self._lock:
            self._last[session] = self._last[address] = time.monotonic()
            self._sessions.put(session, address)

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
                self._open.subtract((session, address))
                self._open += Counter()  # without zeros

    def address(self, session: str | None) -> str | None:
        """The address of a session; None if no request named it."""
        with self._lock:
            return None if session is None else self._sessions.owner(session)

    def have_left(self, address: str, since: float) -> bool:
        """Whether for `SECONDS` before now, and after `since`, no page was open at an address and no session there."""
        with self._lock:
            last = max(since, self._last.get(address, since))
            return not self._open[address] and time.monotonic() - last > SECONDS

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
            over = [*self._sessions.make_room()]
            over += [one for one in self._sessions if not self._open[one] and self._last[one] < limit]
            for session in over:
                self._sessions.pop(session)
            keep = self._sessions
            self._last = {name: t for name, t in self._last.items() if name in keep or t >= limit or self._open[name]}
        for end in self.ends:
            end(set(over))

    def watch(self, while_: Callable[[], bool]) -> None:
        """Sweep in a thread of its own, for as long as the condition holds."""

        def work() -> None:
            while while_():
                time.sleep(PAUSE)
                self.sweep()

        threading.Thread(target=work, name="visits", daemon=True).start()
