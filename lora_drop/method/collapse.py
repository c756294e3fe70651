"""When a text goes in circles: a loop that fills its end, and how much of it was there before. Token ids only."""

from __future__ import annotations

from collections.abc import Sequence

LAST = 32  # tokens at the end that a loop must fill
GRAM = 4


def collapse_at(token_ids: Sequence[int]) -> int | None:
    """Where the text collapses: the index of the loop's first token, None if it does not.

    A text has collapsed if its last 32 tokens are one n-gram again and again, at least twice (n is at most 16). The
    loop may have begun before them. The end token is no part of the text: leave it out.
    """
    if len(token_ids) < LAST:
        return None
    for n in range(1, LAST // 2 + 1):
        i = len(token_ids) - n  # the tokens from i on are those from i + n on
        while i and token_ids[i - 1] == token_ids[i - 1 + n]:
            i -= 1
        if len(token_ids) - i >= LAST:
            return i
    return None


def repeated_share(token_ids: Sequence[int]) -> float:
    """The share of a text's 4-grams that occurred earlier in it; 0 where it has none."""
    grams = [tuple(token_ids[i : i + GRAM]) for i in range(len(token_ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
