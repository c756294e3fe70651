"""Tokens to text, a token at a time: nothing lost, nothing broken."""

import random

import pytest

from lora_drop.models.tokens import Detokenizer, piece

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


def test_any_bytes_join_to_their_decoding(tiny):
    """Whatever a model writes, broken or not: the pieces are the text, less a broken end."""
    rng = random.Random(0)
    parts = ["é".encode(), "€".encode(), "👩".encode(), b"\xff", b"\xe2\x82", b"a", b" ", b"\x80" * 5]
    for _ in range(500):
        data = b"".join(rng.choice(parts) for _ in range(rng.randint(1, 30)))
        detokenizer = Detokenizer(tiny.tokenizer)
        text = "".join(detokenizer.add(byte) for byte in data)
        assert text == data.decode(errors="replace").rstrip("\ufffd")


def test_stop_tokens_are_not_text_but_have_a_name(bundled):
    stop = next(iter(bundled.stop_ids))
    assert Detokenizer(bundled.tokenizer).add(stop) == ""
    assert piece(bundled.tokenizer, stop) == "<|im_end|>"
