"""Whose turn it is: round robin over addresses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

KNOWN = 1000  # addresses whose last turn is remembered; a forgotten address counts as new


def too_late(seconds: float) -> str:
    """The refusal of a call whose turn did not come in time."""
    return f"This app is busy, and your turn did not come within {seconds:g} s: try again in a moment."


class Turns:
    """Round robin over addresses: next is the address whose last turn is longest ago.

    So an address waits for at most the current call and one call of each other waiting address.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()  # address -> number of its last turn
        self._turn = 0

    def order(self, waiting: Sequence[str]) -> list[int]:
        """Order in which the waiting calls will be served, as indices.

        Args:
            waiting: the address of each call, in order of arrival.
        """
        last, left, order = dict(self._last), list(range(len(waiting))), []
        for turn in range(len(waiting)):
            first = min(left, key=lambda i: (last.get(waiting[i], 0), i))
            left.remove(first)
            order.append(first)
            last[waiting[first]] = self._turn + turn + 1
        return order

    def serve(self, address: str) -> None:
        """Record an address's turn."""
        self._turn += 1
        self._last[address] = self._turn
        self._last.move_to_end(address)
        while len(self._last) > KNOWN:
            self._last.popitem(last=False)
