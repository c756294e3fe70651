"""Uploaded traces on the server's disk: few, counted, and deleted once they were read or their visitor has left.

Gradio would delete uploads by a timer alone, and never what a failed upload wrote. `Uploads`, an ASGI middleware
inside the guard, follows each upload through the app instead. No file is deleted on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.routing import get_route_path  # type: ignore[attr-defined]  # which Starlette imports there itself
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drop.run.shares import Shares
from lora_drop.ui.serve.gradio_private import uploading
from lora_drop.ui.serve.guard import counted
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import Policy
from lora_drop.ui.serve.routes import Kind
from lora_drop.ui.serve.visits import Visits

PLACES = 8  # room on the disk, in traces of the largest size allowed
FILES = 256  # files on the disk
AT_ONCE = 4  # concurrent uploads; one address may have half of them
_PATHS = TypeAdapter(list[Path])  # Gradio's answer to an upload


class Shelf:
    """The uploaded files on the disk. Thread-safe.

    A file belongs to its address until an event names it. Where there are too many files or bytes, the oldest of the
    address that holds most go.

    Attributes:
        on_drop: called with each file that goes.
        by_address: whether addresses tell visitors apart.
    """

    def __init__(self, visits: Visits, most_bytes: int):
        self.on_drop: Callable[[str], None] = lambda path: None
        self.by_address = True
        self._lock = threading.Lock()
        self._files: Shares[str, None] = Shares(FILES, most_bytes)
        visits.ends.append(lambda _: self._clear(lambda address: not visits.is_here(address)))

    def add(self, path: Path, address: str) -> None:
        """Keep an address's new file, and delete old ones to make room."""
        with self._lock, contextlib.suppress(OSError):
            for old in self._files.put(os.path.abspath(path), None, address, path.stat().st_size):
                self._delete(old)

    def is_open_to(self, address: str, path: str) -> bool:
        """Whether an address may name a file: another's upload it may not."""
        return not self.by_address or self._files.owner(os.path.abspath(path)) in (None, address)

    def done(self, path: str) -> None:
        """Delete a file that was read."""
        with self._lock:
            if (path := os.path.abspath(path)) in self._files:
                self._delete(path)

    def clear(self) -> None:
        """Delete all files."""
        self._clear(lambda _: True)

    def _clear(self, goes: Callable[[str], bool]) -> None:
        """Delete the files of some addresses."""
        with self._lock:
            for path in self._files:
                if goes(self._files.owner(path) or ""):
                    self._delete(path)

    def __len__(self) -> int:
        return len(self._files)

    def _delete(self, path: str) -> None:
        self._files.pop(path)
        self.on_drop(path)
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))  # Gradio made it for this file


class Uploads:
    """The middleware: follows each upload and each open page."""

    def __init__(self, app: ASGIApp, policy: Policy, counters: Counters, shelf: Shelf, visits: Visits):
        self.app, self.policy, self.counters, self.shelf, self.visits = app, policy, counters, shelf, visits
        self._coming: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse an upload where too many arrive at once."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, address = get_route_path(scope).removeprefix("/gradio_api/"), scope["lora_drop.address"]
        if path.startswith("heartbeat/"):  # a page keeps this request open
            with self.visits.page(scope["lora_drop.session"], address):
                await self.app(scope, receive, send)
        elif path.startswith("file=") and not self.shelf.is_open_to(address, path.removeprefix("file=")):
            await JSONResponse({"detail": "This app has no such file."}, 404)(scope, receive, send)
        elif scope["lora_drop.kind"] is Kind.UPLOAD and scope["method"] == "POST":
            await self._upload(scope, receive, send, address)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, address: str) -> None:
        if self._coming.total() >= AT_ONCE or self._coming[address] >= AT_ONCE // 2:
            self.counters.refuse("upload")
            line = "Too many uploads at once: try again in a moment."
            await JSONResponse({"detail": line}, 503, {"Connection": "close"})(scope, receive, send)
            return
        answer, at_end = bytearray(), contextlib.AsyncExitStack()

        async def listening(message: Message) -> None:
            if message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))
                if not message.get("more_body"):  # a file is counted by the time its client hears of it
                    await at_end.aclose()
            await send(message)

        with counted(self._coming, address), uploading() as clear:

            async def settle() -> None:
                await asyncio.shield(asyncio.to_thread(self._settle, bytes(answer), clear, address))

            at_end.push_async_callback(settle)
            async with at_end:
                await self.app(scope, receive, listening)

    def _settle(self, answer: bytes, clear: Callable[[], None], address: str) -> None:
        """Keep what an upload made, or delete it."""
        try:
            paths = _PATHS.validate_json(answer)
        except ValidationError:  # the upload failed
            paths = []
            self.counters.add("uploads_broken")
        clear()
        for path in paths:
            self.shelf.add(path, address)
