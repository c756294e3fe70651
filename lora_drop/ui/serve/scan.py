"""Bounds on the shape of a JSON body, checked before anything parses it.

A parser makes 40 times a body's bytes of `[],[],...`, on the event loop. This scan makes nothing: it counts.
"""

from __future__ import annotations

import asyncio
import re
from itertools import accumulate

import orjson

OUTSIDE = 64 * 1024  # bytes outside strings
VALUES, DEPTH = 5000, 32
NAME = 128  # characters of a key or a hash
HASHES = (b"session_hash", b"event_id")
TURN = 500  # strings between two turns of the event loop: 1 ms
_PART = re.compile(rb'(?:[^"\\]|\\.){0,16384}+', re.DOTALL)  # of a string, between two turns: 0.4 ms
_COLON = re.compile(rb"[ \t\r\n]{0,1000}:")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class TooComplex(ValueError):
    """A body is beyond these bounds; the words say which."""


async def check_shape(body: bytes) -> tuple[str | None, int]:
    """Check a body, in steps between which others have the event loop.

    Returns:
        The `session_hash` of the outermost object, None without one; and the bytes outside strings.

    Raises:
        TooComplex: the body is beyond the bounds.
    """
    at = outside = values = depth = strings = 0
    session, key = None, b""
    while at < len(body):
        start = body.find(b'"', at) + 1 or len(body) + 1  # of a string, after its quote
        outside += start + 1 - at
        if outside > OUTSIDE + 2:
            raise TooComplex(f"more than {OUTSIDE // 1024} kB outside of texts")
        plain = body[at : start - 1]
        opened = plain.count(b"[") + plain.count(b"{")
        values += opened + plain.count(b",")
        if values > VALUES or (depth + opened > DEPTH and _deepest(plain, depth) > DEPTH):
            raise TooComplex(f"more than {VALUES:,} values, or deeper than {DEPTH}")
        depth += opened - plain.count(b"]") - plain.count(b"}")
        end, strings = start, strings + 1
        while body[end : end + 1] not in (b'"', b""):
            part = _PART.match(body, end)
            end = part.end() if part and part.end() > end else len(body)
            if end - start > 16384 or strings % TURN == 0:
                await asyncio.sleep(0)
        at, is_key = end + 1, _COLON.match(body, end + 1)
        if (is_key or (depth == 1 and key in HASHES)) and end - start > NAME:
            raise TooComplex(f"a key or hash of more than {NAME} characters")
        if depth == 1 and key == b"session_hash" and not is_key and start < len(body):
            session = _text(body[start:end])
        key = body[start:end] if is_key else b""
        if depth == 1 and b"\\" in key:
            raise TooComplex("a key with an escape")
    return session, outside


def _deepest(plain: bytes, depth: int) -> int:
    brackets = plain.translate(None, _NO_BRACKETS)
    return max(accumulate((1 if bracket in b"[{" else -1 for bracket in brackets), initial=depth))


def _text(inner: bytes) -> str:
    """The text; half a surrogate is none, and would end the table that Gradio makes of its calls."""
    try:
        return str(orjson.loads(b'"%s"' % inner))
    except orjson.JSONDecodeError:
        raise TooComplex("a hash that is no text") from None
