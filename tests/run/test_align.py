"""Two answers side by side, word by word."""

import random
import time

import pytest

from lora_drop.run.align import ALIGNED, Piece, align, word_at, words_of
from tests.support.retold import beside, words


def test_words_stand_between_spaces_and_signs_for_themselves():
    assert words_of("  The sky,\nis blue. ") == ["The", "sky,", "is", "blue."]
    assert words_of("天空是blue的 かな") == ["天", "空", "是", "blue", "的", "か", "な"]
    assert words_of(" \n\u3000") == []


def test_the_pieces_in_order_are_both_answers():
    found = align("the cat sat on the mat", "the old cat sat by the mat")
    assert found.pieces == [
        Piece("same", ["the"], ["the"]),
        Piece("differ", [], ["old"]),
        Piece("same", ["cat", "sat"], ["cat", "sat"]),
        Piece("differ", ["on"], ["by"]),
        Piece("same", ["the", "mat"], ["the", "mat"]),
    ]
    assert found.counts == {"full": 6, "lane": 7, "all": 7, "differ": 2, "first": 1}


@pytest.mark.parametrize(
    ("one", "other", "first", "differ"),
    [
        ("", "", None, 0),
        ("a b", "a  b\n", None, 0),
        ("a b", "a b c d", 2, 2),
        ("a b c", "a", 1, 2),
        ("x b", "y b", 0, 1),
        ("", "a", 0, 1),
    ],
)
def test_where_they_first_differ(one, other, first, differ):
    counts = align(one, other).counts
    assert (counts["first"], counts["differ"]) == (first, differ)


def test_on_random_texts_it_is_what_plain_code_finds():
    dice = random.Random(1)
    for _ in range(200):
        one, other = (" ".join(dice.choices("abcde", k=dice.randrange(30))) for _ in range(2))
        counts = align(one, other).counts
        assert (counts["first"], counts["differ"], counts["all"]) == beside(one, other), (one, other)
        for text, of in ((one, "one"), (other, "other")):
            assert [word for piece in align(one, other).pieces for word in getattr(piece, of)] == words(text)


def test_a_text_made_to_be_slow_is_not():
    dice = random.Random(2)
    one, other = (" ".join(dice.choices("ab", k=50 * ALIGNED)) for _ in range(2))
    started = time.monotonic()
    counts = align(one, other).counts
    assert counts["full"] == counts["lane"] == 50 * ALIGNED and time.monotonic() - started < 20


def test_the_word_of_a_token():
    texts = ["The", " sky", " is", " bl", "ue", ".", "\n", " It", "天", "空", ""]
    assert [word_at(texts, token) for token in range(len(texts))] == [0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 7]
