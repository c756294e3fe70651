"""Bounds on the shape of a JSON body, checked as its bytes arrive and before anything parses it.

A parser makes 40 times a body's bytes of `[],[],...`, on the event loop. `Scan` makes nothing: it counts.
"""

from __future__ import annotations

import asyncio
import re

import orjson

OUTSIDE = 64 * 1024  # bytes outside strings
VALUES, DEPTH = 5000, 32
NAME = 128  # characters of a key or a hash
HASHES = {b"session_hash", b"event_id"}
PIECE = 2 * 1024  # bytes between two turns of the event loop: at most 5 ms
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_MARK = re.compile(rb'["\[\]{}:,]')


class TooComplex(ValueError):
    """A body is beyond these bounds; the words say which."""


class Scan:
    """Counts of a body so far.

    Attributes:
        session: the `session_hash` in the body's outermost object; None without one.
    """

    def __init__(self) -> None:
        self.session: str | None = None
        self._outside = self._values = self._depth = 0
        self._string: bytearray | None = None  # the first bytes of the string under way
        self._length = 0  # of that string, or of the last one
        self._last, self._key = b"", b""  # the last string, and the last key
        self._escaped = False  # a piece ended in a backslash

    async def feed(self, chunk: bytes) -> None:
        """Count a chunk, in pieces between which others have the event loop. Raises TooComplex."""
        for start in range(0, len(chunk), PIECE):
            self.count(chunk[start : start + PIECE])
            if start:
                await asyncio.sleep(0)

    def count(self, piece: bytes) -> None:
        """Count a piece at once. Raises TooComplex."""
        at = 0
        while at < len(piece):
            at = self._plain(piece, at) if self._string is None else self._inside(piece, at)

    def _plain(self, piece: bytes, at: int) -> int:
        """Count up to the next mark outside strings; returns the place after it."""
        mark = _MARK.search(piece, at)
        end = mark.end() if mark else len(piece)
        self._outside += end - at
        if self._outside > OUTSIDE:
            raise TooComplex(f"more than {OUTSIDE // 1024} kB outside of texts")
        if mark is None:
            return end
        kind = mark[0]
        if kind == b'"':
            self._string, self._length = bytearray(), 0
        elif kind == b":":
            self._check_name("key")
            self._key = self._last
            if self._depth == 1 and b"\\" in self._key:
                raise TooComplex("a key with an escape")
        elif kind in b"[{,":
            self._values, self._key = self._values + 1, b""
            self._depth += kind != b","
            if self._values > VALUES or self._depth > DEPTH:
                raise TooComplex(f"more than {VALUES:,} values, or deeper than {DEPTH}")
        else:
            self._depth -= 1
        return end

    def _inside(self, piece: bytes, at: int) -> int:
        """Go to the end of a string; returns the place after it."""
        assert self._string is not None
        start = at
        if self._escaped:
            at, self._escaped = at + 1, False
        match = _IN_STRING.match(piece, at)
        assert match is not None
        end = match.end()
        if end < len(piece) and piece[end] == ord("\\"):  # the last byte: what it escapes is in the next piece
            self._escaped, end = True, end + 1
        self._length += end - start
        self._string += piece[start : min(end, start + NAME + 1 - len(self._string))]
        if self._depth == 1 and self._key in HASHES:
            self._check_name("hash")
        if end == len(piece):
            return end
        self._last, self._string = bytes(self._string), None
        if self._depth == 1 and self._key == b"session_hash":
            self.session = _text(self._last)
        return end + 1

    def _check_name(self, kind: str) -> None:
        if self._length > NAME:
            raise TooComplex(f"a {kind} of more than {NAME} characters")


def _text(inner: bytes) -> str | None:
    try:
        return orjson.loads(b'"%s"' % inner)
    except orjson.JSONDecodeError:
        return None  # the app refuses it, too
