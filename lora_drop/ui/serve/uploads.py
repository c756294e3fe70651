"""Opened traces on the server's disk: few, counted, and gone once they were read or their visitor has left.

Gradio keeps what was uploaded until a clock of its own comes by, and of an upload that breaks off what had come. Here
each upload is followed through the app: `Uploads` is an ASGI middleware within the guard.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drop.ui.serve.counters import Counters
from lora_drop.ui.serve.guard import UPLOAD
from lora_drop.ui.serve.policy import Policy

PLACES = 8  # traces that may lie here, in sizes of the largest that is allowed
AT_ONCE = 4  # uploads that may come at a time, half of them from one address
SECONDS = 600.0  # for a trace that nobody opens
VISIT = re.compile(r"/heartbeat/[^/]+/?$")  # the request that a page keeps open while it is there


@dataclass
class _File:
    path: Path
    address: str | None
    size: int
    since: float


class Shelf:
    """The uploaded files that are there. Any thread may ask."""

    def __init__(self, most_bytes: int):
        self._most, self._lock = most_bytes, threading.Lock()
        self._files: list[_File] = []

    def add(self, path: Path, address: str | None) -> None:
        """A file came; the oldest ones make room for it, and those that nobody opened in time go.

        Args:
            address: of the open pages that it goes with; None for a client that has no page open.
        """
        with self._lock, contextlib.suppress(OSError):
            now = time.monotonic()
            self._files.append(_File(path, address, path.stat().st_size, now))
            for file in [file for file in self._files if now - file.since > SECONDS]:
                self._drop(file)
            while len(self._files) > 1 and sum(file.size for file in self._files) > self._most:
                self._drop(self._files[0])

    def done(self, path: str | Path) -> None:
        """A file was read. Where two visitors sent the same one, the other's stays."""
        with self._lock:
            for file in [file for file in self._files if file.path == Path(path)][:1]:
                self._drop(file)

    def left(self, address: str) -> None:
        """The last page of an address was closed."""
        with self._lock:
            for file in [file for file in self._files if file.address == address]:
                self._drop(file)

    def __len__(self) -> int:
        return len(self._files)

    def _drop(self, file: _File) -> None:
        self._files.remove(file)
        if all(other.path != file.path for other in self._files):
            _remove(file.path)


def _paths(answer: bytes) -> list[str] | None:
    """The files that an upload's answer names; None where it did not end well."""
    with contextlib.suppress(ValueError):
        found = json.loads(answer)
        if isinstance(found, list):
            return found
    return None


def _remove(path: Path) -> None:
    """A file in the folder that Gradio made for it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


class Uploads:
    """The middleware: follows each upload and each visit, over the app that they go to."""

    def __init__(self, app: ASGIApp, policy: Policy, counters: Counters, shelf: Shelf):
        self.app, self.policy, self.counters, self.shelf = app, policy, counters, shelf
        self._coming: Counter[str] = Counter()
        self._visits: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or send an upload away."""
        path = scope["path"] if scope["type"] == "http" else ""
        if VISIT.search(path):
            await self._visit(scope, receive, send)
        elif UPLOAD.search(path) and scope["method"] == "POST":
            await self._upload(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _visit(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["lora_drop.address"]
        self._visits[address] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._visits[address] -= 1
            if not self._visits[address]:
                del self._visits[address]
                self.shelf.left(address)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["lora_drop.address"]
        if self._coming.total() >= AT_ONCE or self._coming[address] >= AT_ONCE // 2:
            self.counters.refuse("upload")
            line = "Too many uploads at once: try again in a moment."
            await JSONResponse({"detail": line}, 503, {"Connection": "close"})(scope, receive, send)
            return
        said = bytearray()

        async def listening(message: Message) -> None:
            if message["type"] == "http.response.body":
                said.extend(message.get("body", b""))
            await send(message)

        self._coming[address] += 1
        try:
            await self.app(scope, receive, listening)
        finally:
            self._coming[address] -= 1
            if not self._coming[address]:
                del self._coming[address]
            paths = _paths(bytes(said))
            if paths is None:
                self.counters.add("uploads_broken")
            for path in paths or ():
                self.shelf.add(Path(path), address if self._visits[address] else None)
