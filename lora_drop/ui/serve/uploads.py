"""Uploaded traces on the server's disk: few, counted, and deleted once they were read or their visitor has left.

Gradio deletes uploads by a timer alone, and never deletes the part of an upload that broke off. `Uploads`, an ASGI
middleware inside the guard, follows each upload through the app instead.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drop.ui.serve.guard import UPLOAD, counted
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import Policy

PLACES = 8  # room on the disk, in traces of the largest size allowed
AT_ONCE = 4  # concurrent uploads; one address may have half of them
SECONDS = 600.0  # lifetime of a trace that nobody opens
VISIT = re.compile(r"/heartbeat/[^/]+/?$")  # a page keeps this request open for as long as it is open
_PATHS = TypeAdapter(list[Path])  # Gradio's answer to an upload


@dataclass
class _File:
    path: Path
    address: str | None
    size: int
    since: float


class Shelf:
    """The uploaded files on the disk. Thread-safe."""

    def __init__(self, most_bytes: int):
        self._most, self._lock = most_bytes, threading.Lock()
        self._files: list[_File] = []

    def add(self, path: Path, address: str | None) -> None:
        """Keep a new file. Delete the oldest ones to make room, and those that nobody opened in time.

        Args:
            address: the visitor's, while a page is open there; None for a client without a page.
        """
        with self._lock, contextlib.suppress(OSError):
            now = time.monotonic()
            self._files.append(_File(path, address, path.stat().st_size, now))
            for file in [file for file in self._files if now - file.since > SECONDS]:
                self._drop(file)
            while len(self._files) > 1 and sum(file.size for file in self._files) > self._most:
                self._drop(self._files[0])

    def done(self, path: str | Path) -> None:
        """Delete a file that was read, unless another visitor uploaded the same one."""
        with self._lock:
            if file := next((file for file in self._files if file.path == Path(path)), None):
                self._drop(file)

    def left(self, address: str) -> None:
        """Delete the files of an address whose last page was closed."""
        with self._lock:
            for file in [file for file in self._files if file.address == address]:
                self._drop(file)

    def __len__(self) -> int:
        return len(self._files)

    def _drop(self, file: _File) -> None:
        self._files.remove(file)
        if all(other.path != file.path for other in self._files):
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)
                file.path.parent.rmdir()  # Gradio made it for this file


class Uploads:
    """The middleware: follows each upload and each open page."""

    def __init__(self, app: ASGIApp, policy: Policy, counters: Counters, shelf: Shelf):
        self.app, self.policy, self.counters, self.shelf = app, policy, counters, shelf
        self._coming: Counter[str] = Counter()
        self._visits: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse an upload where too many arrive at once."""
        path = scope["path"] if scope["type"] == "http" else ""
        if VISIT.search(path):
            await self._visit(scope, receive, send)
        elif UPLOAD.search(path) and scope["method"] == "POST":
            await self._upload(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _visit(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["lora_drop.address"]
        try:
            with counted(self._visits, address):
                await self.app(scope, receive, send)
        finally:
            if address not in self._visits:
                self.shelf.left(address)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["lora_drop.address"]
        if self._coming.total() >= AT_ONCE or self._coming[address] >= AT_ONCE // 2:
            self.counters.refuse("upload")
            line = "Too many uploads at once: try again in a moment."
            await JSONResponse({"detail": line}, 503, {"Connection": "close"})(scope, receive, send)
            return
        answer = bytearray()

        async def listening(message: Message) -> None:
            if message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))
            await send(message)

        try:
            with counted(self._coming, address):
                await self.app(scope, receive, listening)
        finally:
            try:
                paths = _PATHS.validate_json(answer)
            except ValidationError:  # the upload failed
                paths = []
                self.counters.add("uploads_broken")
            for path in paths:
                self.shelf.add(path, address if self._visits[address] else None)
