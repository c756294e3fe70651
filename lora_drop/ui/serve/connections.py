"""How many connections the server takes, and for how long one may say nothing.

Where descriptors run out, the system refuses each new connection, and asyncio says so in a traceback for each try:
220 silent connections to a server of 160 descriptors were its end, and 45,005 tracebacks. Here a server keeps some for
its files, takes no more connections than fit, no more than half of them from one address unless that is a trusted
proxy's, and ends one that sends no request.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

from uvicorn import config as uvicorn_config
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from lora_drop.ui.serve.counters import Counters
from lora_drop.ui.serve.limits import Limits
from lora_drop.ui.serve.policy import Policy

HEAD_SECONDS = 20.0  # until a request has come, at most twice as long for a later one of the same connection
OWN = 64  # descriptors of the server's own: files, libraries, the model
BUSY = b'{"detail":"This app has too many connections: try again in a moment."}'
ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BUSY), BUSY)
)


def connections_that_fit(limits: Limits) -> int:
    """Connections that the server may take: the operator's limit, within what the system lets the process open."""
    try:
        import resource
    except ImportError:  # not a Unix
        return limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + 2 * OWN
    if soft < wanted:
        soft = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(8, min(limits.connections, soft - OWN - soft // 8))


def guard_connections(policy: Policy, counters: Counters) -> None:
    """Have the servers that start from now on keep to this. Gradio makes uvicorn's settings itself."""
    most = connections_that_fit(policy.limits)
    share = most if policy.hops else max(4, most // 2)  # behind a proxy all of them come from its one address
    peers: Counter[str] = Counter()

    class Guarded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """uvicorn's HTTP protocol, within bounds."""

        def connection_made(self, transport: Any) -> None:
            peer = (transport.get_extra_info("peername") or ("",))[0]
            self._peer: str | None = None
            self._head: asyncio.TimerHandle | None = None
            self._answered: Any = None  # the request that was the last one, and answered, when it was looked at last
            super().connection_made(transport)
            if peers.total() >= most or peers[peer] >= share:
                counters.refuse("connections")
                transport.write(ANSWER)
                transport.close()
                return
            self._peer = peer
            peers[peer] += 1
            self._head = self.loop.call_later(HEAD_SECONDS, self._end_if_silent)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def eof_received(self) -> None:
            if self.cycle and not self.cycle.response_complete:
                counters.add("half_closed")  # while its answer was due
            super().eof_received()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._head is not None:
                self._head.cancel()
            if self._peer is not None:
                peers[self._peer] -= 1
                if not peers[self._peer]:
                    del peers[self._peer]
            super().connection_lost(exc)

        def _end_if_silent(self) -> None:
            """Close where nothing has come since the last look: uvicorn waits for ever for the rest of a head."""
            answered = self.cycle is None or self.cycle.response_complete
            if answered and self._answered is self.cycle:
                self.transport.close()
                return
            self._answered = self.cycle if answered else None
            self._head = self.loop.call_later(HEAD_SECONDS, self._end_if_silent)

    uvicorn_config.HTTP_PROTOCOLS["auto"] = Guarded  # type: ignore[assignment]
    # Whose request it is, the guard finds itself: uvicorn believes any header that comes from this machine.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
