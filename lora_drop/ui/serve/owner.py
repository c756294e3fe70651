"""The owner's counters and addresses: figures of the server, and a switch that pauses it.

The addresses exist only where `LORA_DROP_OWNER_TOKEN` is set, and answer to that token alone:

    curl -H "Authorization: Bearer $TOKEN" https://.../metrics
    curl -X POST -H "Authorization: Bearer $TOKEN" https://.../pause    (or /resume)
"""

from __future__ import annotations

import hmac
import threading
from collections import Counter
from collections.abc import Callable

import psutil
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

# Why a visitor was refused, as `/metrics` names it.
REASONS = "body calls connections host input light limits paused queue route session share site unread upload".split()


class Counters:
    """Refusals by reason, runs, tokens and loads, and the owner's pause switch. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self.paused = False

    def refuse(self, reason: str) -> None:
        """Count a refusal for one of `REASONS`."""
        with self._lock:
            self._refused[reason] += 1

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a sum, such as `runs`, `tokens` or `decode_seconds`."""
        with self._lock:
            self._sums[name] += amount  # type: ignore[assignment]

    def refused(self, reason: str) -> int:
        """Number of refusals for a reason."""
        return self._refused[reason]

    def text(self, **now: float) -> str:
        """All counts in the text format of Prometheus.

        Args:
            now: current values, by metric name.
        """
        with self._lock:
            lines = [f'lora_drop_refused_total{{reason="{reason}"}} {self._refused[reason]}' for reason in REASONS]
            lines += [f"lora_drop_{name}_total {float(amount)}" for name, amount in sorted(self._sums.items())]
        tokens, seconds = self._sums["tokens"], self._sums["decode_seconds"]
        now |= {"paused": self.paused, "memory_bytes": psutil.Process().memory_info().rss}
        now |= {"tokens_per_second": tokens / seconds if seconds else 0.0}
        return "\n".join([*lines, *(f"lora_drop_{name} {float(value)}" for name, value in now.items())]) + "\n"


def routes(token: str, counters: Counters, now: Callable[[], dict[str, float]]) -> list[Route]:
    """The owner's addresses; none without a token.

    Args:
        token: the owner's secret.
        now: returns current values by metric name.
    """
    if not token:
        return []

    def guarded(answer: Callable[[], str]) -> Callable[[Request], Response]:
        def checked(request: Request) -> Response:
            sent = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(sent, f"Bearer {token}".encode()):
                return PlainTextResponse("This address is the owner's.\n", 401, {"WWW-Authenticate": "Bearer"})
            return PlainTextResponse(answer())

        return checked

    def pause(paused: bool, answer: str) -> str:
        counters.paused = paused
        return answer

    paused = "Paused: runs in the queue or under way finish, and no new one starts.\n"

    return [
        Route("/metrics", guarded(lambda: counters.text(**now()))),
        Route("/pause", guarded(lambda: pause(True, paused)), methods=["POST"]),
        Route("/resume", guarded(lambda: pause(False, "Runs start again.\n")), methods=["POST"]),
    ]
