"""Two answers side by side, word by word."""

import random

import pytest

from lora_drop.run.report.align import (
    ALIGNED,
    Piece,
    align,
    answers_side_by_side,
    side_by_side,
    text_of,
    word_at,
    words_of,
)


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


def test_the_pieces_of_random_texts_are_both_answers():
    dice = random.Random(1)
    for _ in range(200):
        one, other = (dice.choices("abcde", k=dice.randrange(30)) for _ in range(2))
        found = align(" ".join(one), " ".join(other))
        for words, side in ((one, "left"), (other, "right")):
            assert [word for piece in found.pieces for word in getattr(piece, side)] == words
        assert all((piece.left == piece.right) == (piece.kind == "same") for piece in found.pieces)
        same = sum(len(piece.left) for piece in found.pieces if piece.kind == "same")
        assert found.counts["all"] == same + found.counts["differ"] >= max(len(one), len(other))


def test_a_text_made_to_be_slow_is_not():
    dice = random.Random(2)
    one, other = (" ".join(dice.choices("ab", k=50 * ALIGNED)) for _ in range(2))
    counts = align(one, other).counts
    assert counts["full"] == counts["lane"] == 50 * ALIGNED


def test_the_word_of_a_token():
    texts = ["The", " sky", " is", " bl", "ue", ".", "\n", " It", "天", "空", ""]
    assert [word_at(texts, token) for token in range(len(texts))] == [0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 7]


def test_side_by_side_is_the_alignment_in_words():
    found = side_by_side("The sky is blue today", "The sky is very blue")
    assert found["pieces"] == [
        *(["same", "The sky is", "The sky is"], ["differ", "", "very"]),
        *(["same", "blue", "blue"], ["differ", "today", ""]),
    ]
    assert found["text"] == "Of 6 words side by side 2 differ, from word 4 on."
    assert side_by_side("a b", "a  b")["text"] == "All 2 words are the same."
    assert side_by_side("", "")["pieces"] == []
    assert side_by_side("空は 青い", "空は青い")["text"] == "All 4 words are the same."
    assert text_of(words_of("空は青い because of light")) == "空は青いbecause of light"


def test_any_two_answers_of_a_run():
    pairs = answers_side_by_side({"baseline": "a b", "lora_drop": "a c", "third": "d", "fourth": "e"})
    one, two, three = "baseline", "lora_drop", "third"
    assert [pair["lanes"] for pair in pairs] == [[one, two], [one, three], [two, three]]
    assert pairs[2] == {"lanes": ["lora_drop", "third"], **side_by_side("a c", "d")}
    assert answers_side_by_side({"baseline": "a b"}) == []
