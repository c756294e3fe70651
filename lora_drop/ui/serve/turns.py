"""Whose run is next: addresses take turns, and within an address the order is that of asking. No Gradio here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

KNOWN = 1000  # addresses whose last turn is remembered; one that is forgotten counts as new


class Turns:
    """Round robin over addresses. Whoever had no turn for longest is next, so that a crowd delays another address by
    at most the run that is on and one run of each address that also waits."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()  # address -> number of its last turn
        self._turn = 0

    def order(self, waiting: Sequence[str]) -> list[int]:
        """The order in which the waiting will be served, as indices.

        Args:
            waiting: the address of each, in the order of asking.
        """
        last, left, found = dict(self._last), list(range(len(waiting))), []
        for turn in range(len(waiting)):
            first = min(left, key=lambda i: (last.get(waiting[i], 0), i))
            left.remove(first)
            found.append(first)
            last[waiting[first]] = self._turn + turn + 1
        return found

    def serve(self, address: str) -> None:
        """An address had its turn."""
        self._turn += 1
        self._last[address] = self._turn
        self._last.move_to_end(address)
        while len(self._last) > KNOWN:
            self._last.popitem(last=False)
