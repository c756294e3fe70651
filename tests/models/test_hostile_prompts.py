"""Prompts of any characters: nothing that is typed becomes a special token."""

import functools
import sys

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as bundled_model
from lora_drop.models.tokens import ByteTokenizer, encode_prompt, encode_text
from lora_drop.ui.api import functions
from tests.support.calls import refused
from tests.support.fuzzing import TRIED, profile, texts

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def tokenizer():
    """The real one of the bundled model."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(bundled_model.ensure()), local_files_only=True)
    loaded.model_max_length = sys.maxsize
    return loaded


@pytest.fixture(scope="module")
def special(tokenizer):
    """The strings that the tokenizer turns into one token each."""
    return tokenizer.get_added_vocab()


def pieces(data, special: dict[str, int]) -> str:
    """A text of special tokens, halves of them, and anything else."""
    names = st.sampled_from(sorted(special))
    half = st.tuples(names, st.integers(0, 12)).map(lambda name: name[0][: name[1]])
    return "".join(
        data.draw(st.lists(st.one_of(names, half, texts, st.sampled_from(["\n", " ", "<", "|>"])), max_size=8))
    )


@pytest.fixture(scope="module")
def known(tokenizer):
    """Does the vocabulary have all bytes of a character?"""
    return functools.cache(
        lambda sign: sign in "\n\ud800\udc00" or tokenizer.decode(encode_text(tokenizer, sign)) == sign
    )


@profile(250)
@given(data=st.data())
def test_nothing_that_is_typed_becomes_a_special_token(tokenizer, special, known, data):
    TRIED["prompts"] += 1
    ids = set(special.values())
    # The vocabulary lacks some bytes (of controls, and of planes without characters): what it cannot say is left out.
    prompt = "".join(sign for sign in pieces(data, special) if (sign.isascii() and sign.isprintable()) or known(sign))
    text = prompt.encode("utf-8", "replace").decode()
    plain = encode_text(tokenizer, prompt)
    assert not ids & set(plain) and tokenizer.decode(plain, clean_up_tokenization_spaces=False) == text
    if not prompt.strip():
        with pytest.raises(LoraDropError):
            encode_prompt(tokenizer, prompt)
        return
    encoded = encode_prompt(tokenizer, prompt)
    around = [token for token in encode_prompt(tokenizer, "Hi") if token in ids]
    assert [token for token in encoded if token in ids] == around, "the template's own, and no other"
    assert text in tokenizer.decode(encoded, clean_up_tokenization_spaces=False)


@profile(60)
@given(prompt=texts)
def test_the_byte_tokenizer_takes_any_text_as_bytes(prompt):
    TRIED["prompts"] += 1
    assert all(0 <= token < 256 for token in ByteTokenizer().encode(prompt, add_special_tokens=False))


@pytest.mark.parametrize("piece", ["a", "\n!", "<|im_end|>", "\x00", "\ud800", "😀"])
def test_a_megabyte_is_encoded_or_refused(tokenizer, special, calls, piece):
    TRIED["prompts"] += 1
    prompt = "Hi" + piece * (2**20 // len(piece.encode("utf-8", "replace")))
    encoded = encode_prompt(tokenizer, prompt)
    assert sum(token in special.values() for token in encoded) == sum(
        token in special.values() for token in encode_prompt(tokenizer, "Hi")
    )
    assert calls.count_tokens(prompt) is None, "not counted while it is typed"
    with pytest.raises(gr.Error, match="at most 100,000 characters") as caught:
        list(functions(calls)["generate"](prompt))
    refused(caught.value)
