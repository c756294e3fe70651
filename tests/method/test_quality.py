"""How a text reads: quality loss, repeats, loops."""

import random
import re

import pytest

from lora_drop.method.quality import READS_WELL_LOSS, SLIPS_LOSS, collapse_at, loss_words, reads, repeated_share
from lora_drop.paths import ASSETS

TEXT = list(range(100, 140))  # no token twice


@pytest.mark.parametrize("n", range(1, 17))
@pytest.mark.parametrize("partial", [0, 1])
def test_a_loop_that_fills_the_last_32_tokens_is_a_collapse_from_its_first_token_on(n, partial):
    loop = (list(range(n)) * 40)[: 32 + n * partial]  # it may end within a round
    assert collapse_at(TEXT + loop) == len(TEXT)
    assert collapse_at(loop) == 0
    assert collapse_at(TEXT + loop[:31]) is None


@pytest.mark.parametrize(
    ("ids", "start"),
    [
        (TEXT + [7, 8, 9] * 100, len(TEXT)),  # began long before the last 32 tokens
        ([5, 6] + [5] * 40, 2),  # as a loop of one, not of a longer one that holds it
        *(([1, 2] * 40 + TEXT[:1], None), ([1, 2] * 40 + TEXT, None)),  # left its loop
        *(([], None), ([3] * 31, None), (TEXT, None)),
        (list(range(17)) * 3, None),  # 17 tokens do not fill 32 twice
    ],
)
def test_where_a_collapse_begins(ids, start):
    assert collapse_at(ids) == start


def test_collapse_agrees_with_its_definition_on_random_texts():
    random.seed(0)
    for _ in range(2000):
        loop = random.choices([0, 1], k=3) * random.randrange(16)
        ids = [*random.choices([0, 1], k=random.randrange(20)), *loop]
        start = collapse_at(ids)
        last = ids[-32:]
        loops = [n for n in range(1, 17) if len(last) == 32 and all(last[i] == last[i - n] for i in range(n, 32))]
        assert (start is not None) == bool(loops)
        if start is not None:
            n = loops[0]
            assert all(ids[i] == ids[i + n] for i in range(start, len(ids) - n))
            assert start == 0 or ids[start - 1] != ids[start - 1 + n]


def test_the_share_of_repeated_4grams():
    assert repeated_share([]) == repeated_share([1, 1, 1]) == 0
    assert repeated_share(TEXT) == 0
    assert repeated_share([1] * 5) == 0.5  # two 4-grams, the second is the first
    assert repeated_share([1, 2, 3, 4, 9, 1, 2, 3, 4]) == pytest.approx(1 / 6)
    assert repeated_share([1] * 103) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("loss", "repeats", "usual", "verdict"),
    [
        (0.15, 0.1, 0.0, "well"),
        (0.16, 0.0, 0.0, "slips"),
        (0.1, 0.26, 0.15, "slips"),
        (0.5, 0.0, 0.0, "slips"),
        (0.51, 0.0, 0.0, "badly"),
        (0.1, 0.0, 0.9, "well"),
        (None, 0.0, 0.0, None),
        (0.0, None, 0.0, None),
        (0.0, 0.0, None, None),
    ],
)
def test_how_a_text_reads(loss, repeats, usual, verdict):
    assert reads(loss, repeats, usual) == verdict


def test_a_loss_in_words_is_on_its_side_of_each_limit():
    losses = (0.1096, 0.15, 0.1501, 0.15004, 0.499, 0.5, 0.5004, 0.504)
    assert " ".join(map(loss_words, losses)) == "0.11 0.15 0.1501 0.15004 0.50 0.50 0.5004 0.504"
    page = (ASSETS / "js" / "format.js").read_text(encoding="utf-8")
    limits = re.search(r"LOSS_LIMITS = \[(.*)\]", page)
    assert limits and [float(limit) for limit in limits[1].split(",")] == [READS_WELL_LOSS, SLIPS_LOSS]
