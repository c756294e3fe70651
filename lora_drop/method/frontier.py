"""The frontier of speed and quality: rows that no other row beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


def frontier(rows: Iterable[Row], quality: Callable[[Row], float]) -> list[Row]:
    """The rows that no other row beats in both `speedup` and quality (more is better), slowest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["speedup"], quality(row)), reverse=True):
        if not front or quality(row) > quality(front[-1]):
            front.append(row)
    return front[::-1]
