"""Prompt lookup: drafts from the text so far, without a model (github.com/apoorvumang/prompt-lookup-decoding).

The tokens after the earliest earlier occurrence of the text's last n-gram are the drafts, the longest n-gram first, as
in transformers' `PromptLookupCandidateGenerator`; a test compares the two step by step. Only verified text is looked
up, so that a rejected draft leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


class PromptLookup:
    """Drafts for one text.

    Args:
        prompt: the tokens that the text begins with.
        lengths: of the n-grams that are looked up, the shortest and the longest.
        count: most drafts at once.
        stop_ids: tokens that end a text; drafts stop before them.
    """

    def __init__(self, prompt: Sequence[int], lengths: tuple[int, int], count: int, stop_ids: Collection[int]):
        self._text, self._lengths, self._count, self._stop_ids = list(prompt), lengths, count, stop_ids
        self._prompt_tokens, self._indexed = len(prompt), 0
        self._after: dict[tuple[int, ...], int] = {}  # place after the first occurrence of an n-gram

    def drafts(self, tokens: Sequence[int], room: int, pending: int = 0) -> list[int]:
        """Drafts that may follow a text.

        Args:
            tokens: all that were written after the prompt.
            room: most drafts.
            pending: how many of the last tokens are drafts, which may be rejected.
        """
        text, (shortest, longest), verified = self._text, self._lengths, len(tokens) - pending
        text.extend(tokens[len(text) - self._prompt_tokens : verified])
        for end in range(self._indexed + 1, len(text)):  # n-grams that something follows
            for n in range(shortest, min(longest, end) + 1):
                self._after.setdefault(tuple(text[end - n : end]), end)
        self._indexed = len(text) - 1
        last = [*text[-longest:], *tokens[verified:]]
        for n in range(min(longest, len(last)), shortest - 1, -1):
            if (start := self._after.get(tuple(last[-n:]))) is not None:
                drafts = text[start : start + self._count]
                stops = (i for i, token in enumerate(drafts) if token in self._stop_ids)
                return drafts[: min(next(stops, len(drafts)), max(0, room))]
        return []
