"""How a text reads: loops at its end, repeats, quality loss. Token ids and numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Reads = Literal["well", "slips", "badly"]

LAST = 32  # tokens at the end that a loop must fill
GRAM = 4
REPEAT = 2  # tokens of what `own_repeats` calls a repeat: of 2, 3 and 4 the best (docs/training-log.md)

# Limits of quality loss, in nats per token, set by hand. The full model's own samples at temperature 0.7 and top-p
# 0.95 lose 0.26 to its favourites. The full model comes to expect a text that goes in circles, so repeats count too.
READS_WELL_LOSS = 0.15
READS_WELL_REPEATS = 0.1  # the share of repeated 4-grams may exceed that of the full model's own answers by this much
SLIPS_LOSS = 0.5  # up to it a text slips here and there; beyond it few sentences make sense
WORDS: dict[Reads, str] = {"well": "reads well", "slips": "slips", "badly": "reads badly"}
CRITERION = (
    f"Reads well: a regret of at most {READS_WELL_LOSS:g} nats per token, and a share of repeated 4-grams at most "
    f"{100 * READS_WELL_REPEATS:g} points above the full model's. Slips: at most {SLIPS_LOSS:g} nats. "
    "Reads badly: more, or the text ends in a loop."
)
DIGITS = 2  # decimals of a loss in words

# Groups of answers by their share of repeated 4-grams, and what it is below: look-up, and drafts, gain more in loops.
REPETITION = {"under 5%": 0.05, "5 to 50%": 0.5, "50% and more": math.inf}

# A token of a greedy answer is absurd if the full model gives it less than e^-5 (1 in 150) of its favourite's
# probability. The worst token in six of its own samples, at temperature 0.7 and top-p 0.95, has e^-4.4.
ABSURD = 5.0


def reads(loss: float | None, repeats: float | None, usual: float | None, loops: float = 0.0) -> Reads | None:
    """How a text reads, or several on average; None if a figure is missing.

    Args:
        loss: quality loss in nats per token.
        repeats: the share of repeated 4-grams in it.
        usual: the same in the full model's own answers.
        loops: the share of the texts that end in a loop.
    """
    if loss is None or repeats is None or usual is None:
        return None
    if loss > SLIPS_LOSS or loops > 0.5:
        return "badly"
    return "well" if loss <= READS_WELL_LOSS and repeats - usual <= READS_WELL_REPEATS else "slips"


def loss_words(loss: float) -> str:
    """A loss in nats per token, with more decimals where rounding would put it on the other side of a limit."""
    digits = DIGITS
    while any((round(loss, digits) > limit) != (loss > limit) for limit in (READS_WELL_LOSS, SLIPS_LOSS)):
        digits += 1
    return f"{loss:.{digits}f}"


def collapse_at(token_ids: Sequence[int]) -> int | None:
    """Index of the first token of the loop in which a text collapses; None if it does not.

    A text has collapsed if its last 32 tokens repeat one n-gram at least twice (n is at most 16). The loop may have
    begun before them. Leave out the end token.
    """
    if len(token_ids) < LAST:
        return None
    for n in range(1, LAST // 2 + 1):
        i = len(token_ids) - n  # the tokens from i on equal those from i + n on
        while i and token_ids[i - 1] == token_ids[i - 1 + n]:
            i -= 1
        if len(token_ids) - i >= LAST:
            return i
    return None


def repeats_at(token_ids: Sequence[int], end: int) -> bool:
    """True if the 2-gram that ends before index `end` occurred earlier in the text."""
    gram = token_ids[max(0, end - REPEAT) : end]
    return any(token_ids[i : i + REPEAT] == gram for i in range(end - REPEAT))


def repetition(share: float) -> str:
    """The group of an answer with this share of repeated 4-grams."""
    return next(name for name, limit in REPETITION.items() if share < limit)


def repeated_share(token_ids: Sequence[int]) -> float:
    """The share of a text's 4-grams that occurred earlier in it; 0 if it has none."""
    grams = [tuple(token_ids[i : i + GRAM]) for i in range(len(token_ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
