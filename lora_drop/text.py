"""From tokens to text, a token at a time, without ever showing half a character."""

from __future__ import annotations

from typing import Any

_BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are not (yet) UTF-8


class Detokenizer:
    """Incremental decoding with any tokenizer that has `decode(ids, skip_special_tokens=)`.

    A token's text depends on its neighbours (spaces, bytes of one character), so each new piece is the difference of
    two decodings over a short window. What ends in the middle of a character waits for the rest of it; the pieces join
    to the text of all tokens, less such a broken end.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # the window starts here; up to ...
        self._settled = 0  # ... here its text is for context only, whole, and given out
        self._given = 0  # characters of the window's text that were given out

    def add(self, token_id: int) -> str:
        """Take a token; return the text that is complete with it, or "" if it waits."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._context :])
        whole = text.rstrip(_BROKEN)
        piece = whole[self._given :]
        if whole == text:
            self._context, self._settled = self._settled, len(self._ids)
            self._given = len(self._decode(self._ids[self._context :]))
        else:
            self._given = max(self._given, len(whole))
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of one token on its own, special tokens by name: for a label."""
    return tokenizer.decode([token_id], skip_special_tokens=False)
