"""How a text reads, from its quality loss and its repeats. The limits are figures that are set by hand."""

from __future__ import annotations

from typing import Literal

Reads = Literal["well", "slips", "badly"]

# The most quality loss, in nats per token, at which a text is said to read well. The full model's own samples at
# temperature 0.7 and top-p 0.95 lose 0.26 to its favourites. A text that goes in circles comes to be expected: so that
# one is not taken for a good one, its repeats count too.
READS_WELL_LOSS = 0.15
READS_WELL_REPEATS = 0.1  # how much larger the share of repeated 4-grams may be than in the full model's own answers
SLIPS_LOSS = 0.5  # up to it a text slips here and there; beyond it few sentences hold together

# A token of a greedy answer that the full model gives less than e^-5 (1 in 150) of its favourite's probability is
# absurd: the worst one of six samples of its own, at temperature 0.7 and top-p 0.95, has e^-4.4.
ABSURD = 5.0


def reads(loss: float | None, repeats: float | None, usual: float | None) -> Reads | None:
    """How a text reads; None where a figure is missing.

    Args:
        loss: quality loss in nats per token.
        repeats, usual: the share of repeated 4-grams in it, and in the full model's own answers.
    """
    if loss is None or repeats is None or usual is None:
        return None
    if loss > SLIPS_LOSS:
        return "badly"
    return "well" if loss <= READS_WELL_LOSS and repeats - usual <= READS_WELL_REPEATS else "slips"
