"""What stands before Gradio: each request's host, size and rate, the pool of light work, and the page's headers.

An ASGI middleware, given to Gradio's app as Starlette takes them. A refusal is JSON with one sentence, `{"detail"}`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drop.ui.serve.counters import Counters
from lora_drop.ui.serve.gradio_private import MISTAKE
from lora_drop.ui.serve.limits import MIB
from lora_drop.ui.serve.policy import Policy

# What the page needs of its own, and nothing from elsewhere. Gradio makes functions of texts (`unsafe-eval`) and has
# scripts and styles in its page (`unsafe-inline`). A Space shows its app in a frame of the Hub's.
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
LIGHT = re.compile(r"/(run|api)/[^/]+/?$|/component_server/?$")  # what Gradio runs at once, beside its queue
UPLOAD = re.compile(r"/upload/?$")
COUNTED = re.compile(r"/gradio_api/(?!file=)|/login|/pause|/resume|/metrics")  # all but what a page is made of
LIGHT_AT_ONCE, LIGHT_WAITING = 4, 64  # calls of light work, of 40 threads that the runs need too
SMALL = 64 * 1024  # bytes of a body that is always taken, so that Run and Stop work while others send traces
BODY_SECONDS = 60.0  # for the whole of a body
DRAIN_SECONDS, DRAIN_BYTES = 10.0, 256 * MIB
BURST = 5  # seconds' worth of calls that may come at once
KNOWN = 4096  # addresses whose calls are counted


class Guard:
    """The middleware, over the app that it guards."""

    def __init__(self, app: ASGIApp, policy: Policy, counters: Counters):
        self.app, self.policy, self.counters = app, policy, counters
        self._calls: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (calls left, when)
        self._held = 0  # bytes of bodies that are being read or answered
        self._light = LightPool(LIGHT_WAITING // (2 if policy.public else 1))
        policy_line = "; ".join(f"{name} {value}" for name, value in CONTENT_SECURITY_POLICY.items())
        self._headers = {"Content-Security-Policy": policy_line, "X-Content-Type-Options": "nosniff"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or send it away."""
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
        """Raise Refused for what is known from the head of a request."""
        host = headers.get("host", "")
        if not self.policy.allows_host(host):
            raise Refused(
                "host",
                421,
                f"This app does not answer to the name {host[:80]!r}: if it is a way to it (a notebook, a tunnel), "
                "set LORA_DROP_ALLOWED_HOSTS to it.",
            )
        if COUNTED.search(scope["path"]) and not self._may_call(address):
            raise Refused("calls", 429, "Too many requests from your address: wait a second, and try again.")
        if scope["method"] != "POST":
            return
        if headers.get("content-type", "").startswith("multipart/") and not UPLOAD.search(scope["path"]):
            raise Refused("upload", 415, "Files are taken by the upload's own address alone.")
        length, most = headers.get("content-length", "0"), self._most(scope["path"])
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)

    def _most(self, path: str) -> int:
        """Bytes that the body of a request may have. A sign may take 12 bytes of JSON, as `\\ud83d\\ude00` does."""
        limits = self.policy.limits
        if UPLOAD.search(path):
            return limits.trace_bytes + SMALL
        return 2 * limits.trace_bytes if TRACES.search(path) else SMALL + 12 * limits.prompt

    def _may_call(self, address: str) -> bool:
        """Take one of the calls that an address has; they come back with time."""
        rate, now = self.policy.limits.calls, time.monotonic()
        left, then = self._calls.pop(address, (float(BURST * rate), now))
        left = min(float(BURST * rate), left + (now - then) * rate)
        self._calls[address] = (left - 1 if left >= 1 else left, now)
        while len(self._calls) > KNOWN:
            self._calls.popitem(last=False)
        return left >= 1

    def hold(self, count: int, so_far: int) -> None:
        """Count bytes of a body. Raises Refused where all bodies together are too many; a small one never is."""
        if so_far > SMALL and self._held + count > 4 * self.policy.limits.trace_bytes:
            raise Refused("body", 503, "Too many large requests at once: try again in a moment.")
        self._held += count


async def _drain(receive: Receive) -> None:
    """Let the rest of a refused body come, unkept: a visitor who still sends would not see the answer."""
    count, more = 0, True
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and count < DRAIN_BYTES:
                message = await receive()
                count += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass


class Refused(HTTPException):
    """A request that is sent away, for a reason of `counters.REASONS`. Starlette answers it where the app reads."""

    def __init__(self, reason: str, status: int, line: str):
        super().__init__(status, line, {"Connection": "close"})
        self.reason = reason


def _too_large(most: int) -> Refused:
    return Refused("body", 413, f"This request is too large: at most {most / MIB:.3g} MiB.")


class _Body:
    """`receive` of a request, whose bytes are counted as they come."""

    def __init__(self, receive: Receive, most: int, guard: Guard):
        self._receive, self._most, self._guard = receive, most, guard
        self._end = time.monotonic() + BODY_SECONDS
        self._whole = False
        self.held = 0

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is the word that the visitor left
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise self._refuse(Refused("body", 408, "The request did not arrive in time: try again.")) from None
        count = len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self.held + count > self._most:
            raise self._refuse(_too_large(self._most))
        try:
            self._guard.hold(count, self.held + count)
        except Refused as refused:
            raise self._refuse(refused) from None
        self.held += count
        return message

    def _refuse(self, refused: Refused) -> Refused:
        """Starlette answers it, so it is counted here."""
        self._guard.counters.refuse(refused.reason)
        return refused


@dataclass
class LightPool:
    """The few places of work that needs no device, and a line before them.

    Args:
        share: places in the line that one address may have.
    """

    share: int
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LIGHT_AT_ONCE))
    waiting: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def place(self, address: str) -> AsyncIterator[None]:
        """A place, for as long as the block lasts. Raises Refused where the line is full."""
        mine = self.waiting.get(address, 0)
        if sum(self.waiting.values()) >= LIGHT_WAITING or mine >= self.share:
            raise Refused("light", 503, "This app is busy: try again in a moment.")
        self.waiting[address] = mine + 1
        try:
            await self.free.acquire()
        finally:
            self.waiting[address] -= 1
            if not self.waiting[address]:
                del self.waiting[address]
        try:
            yield
        finally:
            self.free.release()
