"""What the server counts of itself for its owner: refusals by reason, runs, tokens, loads."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

# Why a visitor was sent away, as `/metrics` names it.
REASONS = (
    *("body", "calls", "connections", "host", "input", "light", "limits", "paused", "queue", "session", "share"),
    *("unread", "upload"),
)


class Counters:
    """Numbers that only grow, and the owner's pause switch. Any thread may write them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self.paused = False

    def refuse(self, reason: str) -> None:
        """A visitor was sent away for one of `REASONS`."""
        with self._lock:
            self._refused[reason] += 1

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a sum, such as `runs`, `tokens` or `decode_seconds`."""
        with self._lock:
            self._sums[name] += amount  # type: ignore[assignment]

    def refused(self, reason: str) -> int:
        """How many were sent away for a reason."""
        return self._refused[reason]

    def text(self, **now: float) -> str:
        """All of it in the text format of Prometheus; `now` are values of this moment."""
        with self._lock:
            lines = [f'lora_drop_refused_total{{reason="{reason}"}} {self._refused[reason]}' for reason in REASONS]
            lines += [f"lora_drop_{name}_total {float(amount)}" for name, amount in sorted(self._sums.items())]
        tokens, seconds = self._sums["tokens"], self._sums["decode_seconds"]
        now |= {"paused": self.paused, "memory_bytes": resident_bytes()}
        now |= {"tokens_per_second": tokens / seconds if seconds else 0.0}
        return "\n".join([*lines, *(f"lora_drop_{name} {float(value)}" for name, value in now.items())]) + "\n"


def resident_bytes() -> int:
    """Memory of this process, in bytes; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096
