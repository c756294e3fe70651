"""ASGI middleware in front of Gradio: checks each request's host, size and rate, limits light work, sets the headers.

A refusal is JSON with one sentence, `{"detail"}`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drop.ui.serve.gradio_private import MISTAKE
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import MIB, Policy

# Only this server's own content. Gradio compiles strings (`unsafe-eval`) and has inline scripts and styles
# (`unsafe-inline`). The Hub shows a Space in a frame.
CONTENT_SECURITY_POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "media-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "connect-src": "'self'",
    "frame-src": "'none'",
    "form-action": "'none'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "frame-ancestors": "'self' https://huggingface.co https://*.hf.space",
}
TRACES = re.compile(r"/(call|call/v2|run|api)/(replay|inspect)/?$|/queue/join/?$|/mcp(/|$)")  # may carry a whole trace
LIGHT = re.compile(r"/(run|api)/[^/]+/?$|/component_server/?$")  # calls that Gradio runs at once, outside its queue
UPLOAD = re.compile(r"/upload/?$")
COUNTED = re.compile(r"/gradio_api/(?!file=)|/login|/pause|/resume|/metrics")  # all but the page's own files
LIGHT_AT_ONCE, LIGHT_WAITING = 4, 64  # light calls; they share Gradio's 40 threads with the runs
SMALL = 64 * 1024  # bytes of a body that is always accepted, so that Run and Stop work while others send traces
BODY_SECONDS = 60.0  # time for a body to arrive whole
DRAIN_SECONDS, DRAIN_BYTES = 10.0, 256 * MIB
BURST = 5  # seconds' worth of calls that may arrive at once
KNOWN = 4096  # addresses whose calls are counted


class Guard:
    """The middleware around the app that it guards."""

    def __init__(self, app: ASGIApp, policy: Policy, counters: Counters):
        self.app, self.policy, self.counters = app, policy, counters
        self._calls: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (calls left, when)
        self._held = 0  # bytes of the bodies being read or answered
        self._light = LightPool(LIGHT_WAITING // (2 if policy.public else 1))
        policy_line = "; ".join(f"{name} {value}" for name, value in CONTENT_SECURITY_POLICY.items())
        self._headers = {"Content-Security-Policy": policy_line, "X-Content-Type-Options": "nosniff"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        peer = (scope.get("client") or (None,))[0]
        address = self.policy.address(peer, headers.getlist("x-forwarded-for"))
        scope["lora_drop.address"] = address

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 500 and MISTAKE in scope:
                    message["status"] = 400
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        try:
            self._check(scope, headers, address)
            body = _Body(receive, self._most(scope["path"]), self)
            try:
                if scope["method"] == "POST" and LIGHT.search(scope["path"]):
                    async with self._light.place(address):
                        await self.app(scope, body, with_headers)
                else:
                    await self.app(scope, body if scope["method"] == "POST" else receive, with_headers)
            finally:
                self._held -= body.held
        except Refused as refused:
            self.counters.refuse(refused.reason)
            await _drain(receive)
            answer = JSONResponse({"detail": refused.detail}, refused.status_code, {"Connection": "close"})
            await answer(scope, receive, with_headers)

    def _check(self, scope: Scope, headers: Headers, address: str) -> None:
        """Raise Refused if the head of a request is enough to refuse it."""
        host = headers.get("host", "")
        if not self.policy.allows_host(host):
            raise Refused(
                "host",
                421,
                f"This app does not answer to the name {host[:80]!r}. If a notebook or tunnel uses that name, add it "
                "to LORA_DROP_ALLOWED_HOSTS.",
            )
        if COUNTED.search(scope["path"]) and not self._may_call(address):
            raise Refused("calls", 429, "Too many requests from your address: wait a second and try again.")
        if scope["method"] != "POST":
            return
        if headers.get("content-type", "").startswith("multipart/") and not UPLOAD.search(scope["path"]):
            raise Refused("upload", 415, "Files are accepted at the upload address only.")
        length, most = headers.get("content-length", "0"), self._most(scope["path"])
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)

    def _most(self, path: str) -> int:
        """Largest body of a request in bytes. A character may take 12 bytes of JSON, as `\\ud83d\\ude00` does."""
        limits = self.policy.limits
        if UPLOAD.search(path):
            return limits.trace_bytes + SMALL
        return 2 * limits.trace_bytes if TRACES.search(path) else SMALL + 12 * limits.prompt

    def _may_call(self, address: str) -> bool:
        """Take a token from the address's bucket, which refills at `limits.calls` a second; False if it is empty."""
        rate, now = self.policy.limits.calls, time.monotonic()
        left, then = self._calls.pop(address, (float(BURST * rate), now))
        left = min(float(BURST * rate), left + (now - then) * rate)
        self._calls[address] = (left - 1 if left >= 1 else left, now)
        while len(self._calls) > KNOWN:
            self._calls.popitem(last=False)
        return left >= 1

    def hold(self, count: int, so_far: int) -> None:
        """Count bytes of a body.

        Args:
            count: bytes of this chunk.
            so_far: bytes of this body with the chunk; a small body is never refused.

        Raises:
            Refused: all bodies together hold too many bytes.
        """
        if so_far > SMALL and self._held + count > 4 * self.policy.limits.trace_bytes:
            raise Refused("body", 503, "Too many large requests at once: try again in a moment.")
        self._held += count


async def _drain(receive: Receive) -> None:
    """Read the rest of a refused body and discard it: a client that is still sending would not see the answer."""
    count, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and count < DRAIN_BYTES:
                message = await receive()
                count += len(message.get("body", b""))
                more = message.get("more_body", False)


class Refused(HTTPException):
    """A refused request, for a reason of `owner.REASONS`. Raised while the app reads a body, Starlette answers it."""

    def __init__(self, reason: str, status: int, line: str):
        super().__init__(status, line, {"Connection": "close"})
        self.reason = reason


def _too_large(most: int) -> Refused:
    return Refused("body", 413, f"This request is too large: at most {most / MIB:.3g} MiB.")


class _Body:
    """A request's `receive` that counts the bytes as they arrive."""

    def __init__(self, receive: Receive, most: int, guard: Guard):
        self._receive, self._most, self._guard = receive, most, guard
        self._end = time.monotonic() + BODY_SECONDS
        self._whole = False
        self.held = 0

    async def __call__(self) -> Message:
        if self._whole:  # the next message says that the client disconnected
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                message = await self._receive()
            count = len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self.held + count > self._most:
                raise _too_large(self._most)
            self._guard.hold(count, self.held + count)
        except TimeoutError:
            self._guard.counters.refuse("body")
            raise Refused("body", 408, "The request did not arrive in time: try again.") from None
        except Refused as refused:
            self._guard.counters.refuse(refused.reason)  # Starlette answers it
            raise
        self.held += count
        return message


@dataclass
class LightPool:
    """A few places for work that needs no device, with a queue in front.

    Args:
        share: places in the queue that one address may hold.
    """

    share: int
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LIGHT_AT_ONCE))
    waiting: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def place(self, address: str) -> AsyncIterator[None]:
        """Hold a place for the duration of the block. Raises Refused if the queue is full."""
        if self.waiting.total() >= LIGHT_WAITING or self.waiting[address] >= self.share:
            raise Refused("light", 503, "This app is busy: try again in a moment.")
        with counted(self.waiting, address):
            await self.free.acquire()
        try:
            yield
        finally:
            self.free.release()


@contextmanager
def counted(counter: Counter[str], address: str) -> Iterator[None]:
    """Count an address for as long as the block lasts. The counter keeps no zeros: addresses are without number."""
    counter[address] += 1
    try:
        yield
    finally:
        counter[address] -= 1
        if not counter[address]:
            del counter[address]
