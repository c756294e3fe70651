"""ASGI middleware in front of Gradio: checks each request's host, site, size, shape and rate; light work takes turns.

A refusal is JSON with one sentence, `{"detail"}`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from secrets import token_hex

import httpx
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import get_route_path  # type: ignore[attr-defined]  # which Starlette imports there itself
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drop.ui.serve.gradio_private import MCP_VISITOR, MISTAKE
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import MIB, SMALL, Policy
from lora_drop.ui.serve.routes import Kind, Routes
from lora_drop.ui.serve.scan import NAME, TooComplex, check_shape
from lora_drop.ui.serve.turns import Turns, too_late
from lora_drop.ui.serve.visits import Visits

# Only this server's content. Gradio compiles strings (`unsafe-eval`) and has inline scripts and styles
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
TRACES = ("replay", "inspect")  # functions that take a whole trace
LIGHT_AT_ONCE, LIGHT_WAITING = 4, 64  # light calls; they share Gradio's 40 threads with the runs
LIGHT_SECONDS = 20.0  # the longest wait for a place
DENSE = 4096  # bytes outside strings that cost as much as `SMALL` bytes: parsing them takes 1 ms
BODY_SECONDS = 60.0  # time for a body to arrive whole
DRAIN_SECONDS, DRAIN_BYTES = 10.0, 256 * MIB
BURST = 5  # seconds' worth of calls that may arrive at once
PAGES = 16  # calls that a page counts for: it is built anew for each request, in 20 ms
PAGES_AT_ONCE = 60  # 30 visitors behind one address, who all open the page
FILES = 8  # files that a call counts for: a page has 150
KNOWN = 4096  # addresses whose calls are counted


class Guard:
    """The middleware around the app that it guards."""

    def __init__(self, app: ASGIApp, policy: Policy, counters: Counters, visits: Visits):
        self.app, self.policy, self.counters, self.visits = app, policy, counters, visits
        self._routes: Routes | None = None
        self._calls: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # -> (calls left, when)
        self._held: Counter[str] = Counter()  # bytes of the bodies being read or answered, by address
        self._open: Counter[str] = Counter()  # requests being answered, by address
        self._light = LightPool(policy.public)
        self._secret = token_hex()
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
        secret, _, mcp_visitor = headers.get(MCP_VISITOR, "").partition(" ")
        if hmac.compare_digest(secret.encode(), self._secret.encode()):
            address = mcp_visitor
        elif get_route_path(scope).startswith("/gradio_api/mcp"):
            MutableHeaders(scope=scope)[MCP_VISITOR] = f"{self._secret} {address}"
        self._routes = self._routes or Routes(scope["app"].routes)
        kind, names = self._routes.match(scope)
        scope.update({"lora_drop.address": address, "lora_drop.kind": kind})

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 500 and MISTAKE in scope:
                    message["status"] = 400
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        body = _Body(receive, address, self._most(kind, names), self)
        try:
            self._check(scope, headers, address, kind, names)
            with counted(self._open, address):
                await self._answer(scope, body, with_headers, kind, names)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b""})  # a stream of events has sent its end
        except Refused as refused:
            self.counters.refuse(refused.reason)
            await body.drain()
            answer = JSONResponse({"detail": refused.detail}, refused.status_code, {"Connection": "close"})
            await answer(scope, receive, with_headers)
        finally:
            body.end()

    async def _answer(self, scope: Scope, body: _Body, send: Send, kind: Kind, names: dict[str, str]) -> None:
        """Have the app answer. A call's body is whole and bounded in its shape before the app sees any of it."""
        session = names.get("session_hash")
        receive: Receive = body if scope["method"] == "POST" else body.receive
        if scope["method"] == "POST" and kind is not Kind.UPLOAD:
            receive, in_body = await body.scanned()
            session = in_body or session
        address = scope["lora_drop.address"]
        scope.update({"lora_drop.bytes": body.held, "lora_drop.session": session})
        self.visits.seen(session, address)
        if scope["method"] == "POST" and kind is Kind.LIGHT:
            async with self._light.place(address):
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers, address: str, kind: Kind, names: dict[str, str]) -> None:
        """Raise Refused if the head of a request is enough to refuse it."""
        host = headers.get("host", "")
        if not self.policy.allows_host(host):
            raise Refused(
                "host",
                421,
                f"This app does not answer to the name {host[:80]!r}. If a notebook or tunnel uses that name, add it "
                "to LORA_DROP_ALLOWED_HOSTS.",
            )
        try:  # Gradio makes the page's address of these headers, and fails without a clear line on a wrong address
            for name, start in (("host", "http://"), ("x-forwarded-host", "http://"), ("x-gradio-server", "")):
                httpx.URL(start + headers.get(name, "").partition(",")[0].strip())
        except httpx.InvalidURL:
            raise Refused("host", 400, "This request's host is no address.") from None
        if kind is Kind.CLOSED:
            raise Refused("route", 404, "This app has no such address.")
        if not self.take(address, kind.value if kind in (Kind.PAGE, Kind.FILE) else "calls"):
            raise Refused("calls", 429, "Too many requests from your address: wait a second and try again.")
        if self.policy.hops and self._open[address] >= max(4, self.policy.limits.connections // 2):
            raise Refused("connections", 503, "Your address has too many open requests: try again in a moment.")
        if any(len(name) > NAME or not name.isprintable() for pair in names.items() for name in pair):
            raise Refused("body", 400, f"A name or hash here is printable and has at most {NAME} characters.")
        if scope["method"] != "POST":
            return
        if self._is_foreign(headers):
            raise Refused(
                "site",
                403,
                "This app answers to its own page and to programs, not to other web sites. If a proxy changes the "
                "Host, it must send X-Forwarded-Host, and LORA_DROP_TRUSTED_HOPS count it.",
            )
        if headers.get("content-type", "").startswith("multipart/") and kind is not Kind.UPLOAD:
            raise Refused("upload", 415, "Files are accepted at the upload address only.")
        length, most = headers.get("content-length", "0"), self._most(kind, names)
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large(most)

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether a page of another site, or of another port of this host, sends this request."""
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return True
        scheme, _, origin = headers.get("origin", "").lower().partition("://")
        port = {"http": ":80", "https": ":443"}.get(scheme, "")
        hosts = [headers.get("host", ""), *(headers.getlist("x-forwarded-host") if self.policy.hops else [])]
        return "origin" in headers and origin.removesuffix(port) not in [
            host.lower().removesuffix(port) for host in hosts
        ]

    def _most(self, kind: Kind, names: dict[str, str]) -> int:
        """Largest body of a request in bytes."""
        limits = self.policy.limits
        if kind is Kind.UPLOAD:
            return limits.trace_bytes + SMALL
        # At the queue's address the body names the function: `FairQueue` refuses a large one for other functions.
        takes_trace = kind is Kind.RUN and names.get("api_name", "replay") in TRACES
        return 2 * limits.trace_bytes if takes_trace else limits.body_bytes

    def take(self, address: str, bucket: str) -> bool:
        """Take a token from a bucket of the address, which refills at its rate; False if it is empty."""
        calls, now = self.policy.limits.calls, time.monotonic()
        rate, most = {
            "page": (calls / PAGES, PAGES_AT_ONCE),
            "file": (calls * FILES, calls * FILES * BURST),
        }.get(bucket, (calls, calls * BURST))
        left, then = self._calls.pop((address, bucket), (float(most), now))
        left = min(float(most), left + (now - then) * rate)
        self._calls[address, bucket] = (left - 1 if left >= 1 else left, now)
        while len(self._calls) > KNOWN:
            self._calls.popitem(last=False)
        return left >= 1

    def hold(self, address: str, count: int, so_far: int) -> None:
        """Count bytes of a body.

        Args:
            count: bytes of this chunk.
            so_far: bytes of this body with the chunk; a small body is never refused.

        Raises:
            Refused: all bodies together, or those of this address, hold too many bytes.
        """
        most = 4 * self.policy.limits.trace_bytes
        mine, all_held = self._held[address] + count, self._held.total() + count
        if so_far > SMALL and (all_held > most or mine > most // (2 if self.policy.public else 1)):
            raise Refused("body", 503, "Too many large requests at once: try again in a moment.")
        self._held[address] = mine

    def release(self, address: str, count: int) -> None:
        """Count the bytes of a body no longer."""
        self._held -= Counter({address: count})  # keeps no zeros


class Refused(HTTPException):
    """A refused request, for a reason of `owner.REASONS`. Raised while the app reads a body, Starlette answers it."""

    def __init__(self, reason: str, status: int, line: str):
        super().__init__(status, line, {"Connection": "close"})
        self.reason = reason


def too_large(most: int) -> Refused:
    """The refusal of a body of more than `most` bytes."""
    return Refused("body", 413, f"This request is too large: at most {most / MIB:.3g} MiB.")


class _Body:
    """A request's `receive` that counts the bytes as they arrive, and slows down an address that sends many."""

    def __init__(self, receive: Receive, address: str, most: int, guard: Guard):
        self.receive, self._address, self._most, self._guard = receive, address, most, guard
        self._end = time.monotonic() + BODY_SECONDS
        self._whole = False
        self.held = 0

    async def __call__(self) -> Message:
        """The next message, for an app that reads the body itself: Starlette answers a refusal raised here."""
        if self._whole:  # the next message says that the client disconnected
            return await self.receive()
        try:
            return await self._next()
        except Refused as refused:
            self._guard.counters.refuse(refused.reason)
            raise

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                message = await self.receive()
                self._whole = not message.get("more_body", False)
                count = len(message.get("body", b""))
                if self.held + count > self._most:
                    raise too_large(self._most)
                await self._pay((self.held + count) // SMALL - self.held // SMALL)
        except TimeoutError:
            raise Refused("body", 408, "The request did not arrive in time: try again.") from None
        self._guard.hold(self._address, count, self.held + count)
        self.held += count
        return message

    async def scanned(self) -> tuple[Receive, str | None]:
        """Read the whole body and check its shape; returns a `receive` that has it, and the session in it."""
        chunks = []
        while not self._whole:
            message = await self._next()
            if message["type"] == "http.disconnect":
                break
            chunks.append(message.get("body", b""))
        bodies = [b"".join(chunks)]
        try:
            session, outside = await check_shape(bodies[0])
        except TooComplex as error:
            raise Refused("body", 413, f"This request is too complex: {error}.") from None
        await self._pay(outside // DENSE)

        async def receive() -> Message:
            if not bodies:
                return await self.receive()
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        return receive, session

    async def _pay(self, tokens: int) -> None:
        """Wait until the address has tokens for the bytes that it sends."""
        for _ in range(tokens):
            while not self._guard.take(self._address, "bytes"):
                await asyncio.sleep(0.05)

    async def drain(self) -> None:
        """Read the rest of a refused body and discard it: a client that is still sending would not see the answer."""
        count = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._whole and count < DRAIN_BYTES:
                    message = await self.receive()
                    count += len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)

    def end(self) -> None:
        """The request is answered."""
        self._guard.release(self._address, self.held)


class LightPool:
    """A few places for work that needs no device, with a queue in front: addresses take turns, each with a share."""

    def __init__(self, public: bool):
        self._share = 2 if public else 1
        self._turns = Turns()
        self._running: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def place(self, address: str) -> AsyncIterator[None]:
        """Hold a place for the duration of the block. Raises Refused if the queue is full or the wait too long."""
        mine = sum(other == address for other, _ in self._waiting)
        if len(self._waiting) >= LIGHT_WAITING or mine >= LIGHT_WAITING // self._share:
            raise Refused("light", 503, "This app is busy: try again in a moment.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((address, turn))
        self._serve()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LIGHT_SECONDS):
                    await asyncio.shield(turn)
            if not turn.done():  # else the turn came as the time was up
                raise Refused("light", 503, too_late(LIGHT_SECONDS))
            yield
        finally:
            if turn.done():
                self._running -= Counter((address,))
            else:
                self._waiting.remove((address, turn))
            self._serve()

    def _serve(self) -> None:
        """Give the free places to those whose turn it is."""
        most = LIGHT_AT_ONCE // self._share
        while self._running.total() < LIGHT_AT_ONCE:
            free = [(address, turn) for address, turn in self._waiting if self._running[address] < most]
            if not free:
                return
            address, turn = free[self._turns.order([address for address, _ in free])[0]]
            self._waiting.remove((address, turn))
            self._turns.serve(address)
            self._running[address] += 1
            turn.set_result(None)


@contextmanager
def counted(counter: Counter[str], address: str) -> Iterator[None]:
    """Count an address for as long as the block lasts."""
    counter[address] += 1
    try:
        yield
    finally:
        counter -= Counter((address,))  # in place, without zeros: addresses are without number
