"""Limits on the server's connections: how many, how long one may stay silent, and how slowly one may read.

Without file descriptors the system refuses each new connection, and asyncio prints a traceback for each try: 220
silent connections stopped a server with 160 descriptors, with 45,005 tracebacks. So the server reserves descriptors
for its files, accepts no more connections than fit, no more than half of them from one address (an IPv4 address or an
IPv6 /64) unless that is a trusted proxy's, and closes one that sends no request or does not read its answer. Where all
are taken, a newcomer gets a connection of the address with most of them.
"""

from __future__ import annotations

import asyncio
import os
from math import inf
from typing import Any

from uvicorn import config as uvicorn_config
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from lora_drop.run.shares import Shares
from lora_drop.system import descriptors
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import Limits, Policy

HEAD_SECONDS = 20.0  # time for a request's head to arrive; up to twice that for later requests of a connection
WRITE_SECONDS, WRITE_BYTES = 20.0, 20_000  # an answer that waits for its reader must shrink by so much in that time
RESERVED = 64  # descriptors that the server itself needs: files, libraries, the model
BUSY = b'{"detail":"This app has too many connections: try again in a moment."}'
ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BUSY), BUSY)
)


def connections_that_fit(limits: Limits) -> int:
    """Connections that the server may accept: the operator's limit, within the process's limit of descriptors."""
    files = descriptors(limits.connections + 2 * RESERVED)
    return limits.connections if files is None else max(8, min(limits.connections, files - RESERVED - files // 8))


def guard_connections(policy: Policy, counters: Counters) -> None:
    """Apply the limits to every server that starts from now on. Gradio leaves no way to pass uvicorn's settings."""
    most = connections_that_fit(policy.limits)
    share = most if policy.hops else max(4, most // 2)  # all connections through a proxy have its address
    peers: Shares[Guarded, None] = Shares(most)

    class Guarded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """uvicorn's HTTP protocol within these limits."""

        def connection_made(self, transport: Any) -> None:
            peer = policy.address((transport.get_extra_info("peername") or ("",))[0], ())
            self._head: asyncio.TimerHandle | None = None
            self._write: asyncio.TimerHandle | None = None
            self._answered: Any = None  # the last request, if it was answered at the previous look
            super().connection_made(transport)
            mine = peers.count(peer)
            if mine >= share or (len(peers) >= most and peers.count(peers.heaviest()) <= mine + 1):
                counters.refuse("connections")
                transport.write(ANSWER)
                transport.close()
                return
            for other in peers.put(self, None, peer):
                counters.refuse("connections")
                other.transport.abort()
            self._head = self.loop.call_later(HEAD_SECONDS, self._end_if_silent)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._end_if_unread(inf)

        def resume_writing(self) -> None:
            if self._write is not None:
                self._write.cancel()
            super().resume_writing()

        def _end_if_unread(self, before: float) -> None:
            """Close if the bytes that wait for the reader have hardly become fewer since the last look."""
            waiting = self.transport.get_write_buffer_size()
            if before - waiting < WRITE_BYTES:
                counters.refuse("unread")
                self.transport.abort()
            else:
                self._write = self.loop.call_later(WRITE_SECONDS, self._end_if_unread, waiting)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def eof_received(self) -> None:
            if self.cycle and not self.cycle.response_complete:
                counters.add("half_closed")  # before the answer was sent
            super().eof_received()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head, self._write):
                if timer is not None:
                    timer.cancel()
            peers.pop(self)
            super().connection_lost(exc)

        def _end_if_silent(self) -> None:
            """Close if nothing arrived since the last look: uvicorn waits for ever for the rest of a head."""
            answered = self.cycle is None or self.cycle.response_complete
            if answered and self._answered is self.cycle:
                self.transport.close()
                return
            self._answered = self.cycle if answered else None
            self._head = self.loop.call_later(HEAD_SECONDS, self._end_if_silent)

    uvicorn_config.HTTP_PROTOCOLS["auto"] = Guarded  # type: ignore[assignment]
    # The guard works out the client's address; uvicorn would trust any header from this machine.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
