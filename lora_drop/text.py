"""From tokens to text, a token at a time, without ever showing half a character."""

from __future__ import annotations

from typing import Any

_BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are not (yet) UTF-8
_LONGEST = 8  # tokens: no character is spread over more, so what is still broken then stays broken


class Detokenizer:
    """Incremental decoding with any tokenizer that has `decode(ids, skip_special_tokens=)`.

    A token's text depends on its neighbours (spaces, bytes of one character), so each new piece is the difference of
    two decodings over a short window. A piece that ends in the middle of a character waits for the rest of it.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # the window starts here ...
        self._shown = 0  # ... and what is before this has been given out

    def add(self, token_id: int) -> str:
        """Take a token; return the text that is complete with it, or "" if it waits."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._shown])
        now = self._decode(self._ids[self._context :])
        waiting = len(self._ids) - self._shown
        if now.endswith(_BROKEN) and waiting < _LONGEST:
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of one token on its own, special tokens by name: for a label."""
    return tokenizer.decode([token_id], skip_special_tokens=False)
