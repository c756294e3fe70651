"""Tokens to text, a token at a time: nothing lost, nothing broken."""

import pytest

from lora_drop.text import Detokenizer, piece

TEXTS = [
    "Plain text.",
    " leading and trailing ",
    "naïve café – “quotes” …",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 family 🇯🇵",
    "a\n\n\tb",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_no_piece_is_broken(tiny, bundled, text):
    for tokenizer in (tiny.tokenizer, bundled.tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False)
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.add(token) for token in ids]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        assert not any("\ufffd" in p for p in pieces)


def test_half_a_character_at_the_end_is_not_shown(tiny):
    detokenizer = Detokenizer(tiny.tokenizer)
    assert [detokenizer.add(b) for b in "a€".encode()[:-1]] == ["a", "", ""]


def test_bytes_that_never_become_a_character_do_not_block_the_text(tiny):
    detokenizer = Detokenizer(tiny.tokenizer)
    text = "".join(detokenizer.add(b) for b in [0xFF, 0xFE, *b"hello"])
    assert text.endswith("hello")
    only_broken = Detokenizer(tiny.tokenizer)
    assert "".join(only_broken.add(0xFF) for _ in range(20))


def test_stop_tokens_are_not_text_but_have_a_name(bundled):
    stop = next(iter(bundled.stop_ids))
    assert Detokenizer(bundled.tokenizer).add(stop) == ""
    assert piece(bundled.tokenizer, stop) == "<|im_end|>"
