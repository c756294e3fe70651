"""Text to tokens and back: prompts through the chat template, streaming detokenisation, a byte tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lora_drop.errors import LoraDropError


def encode_prompt(tokenizer: Any, prompt: str, chat: bool = True) -> list[int]:
    """The prompt as token ids, through the chat template where there is one (and `chat` is true).

    A prompt is plain text: `<|im_end|>` in it becomes ordinary tokens and cannot end the turn. Prompts without such
    markers have exactly the tokens of `apply_chat_template` (or of `encode`).

    Args:
        tokenizer: a transformers tokenizer or a ByteTokenizer.
        prompt: one user message.
        chat: False for plain text, with the tokenizer's own start token.

    Raises:
        LoraDropError: the prompt is empty, or the chat template cannot hold it.
    """
    if not prompt.strip():
        raise LoraDropError("the prompt is empty: write something.")
    prompt = prompt.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates are not text
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.encode(prompt)
    markers = _marker_pattern(tokenizer)
    if not (chat and tokenizer.chat_template):
        if not markers.search(prompt):
            return list(tokenizer.encode(prompt))
        before, after = _frame(tokenizer)
        return [*before, *_encode_as_text(tokenizer, prompt), *after]
    text = _render(tokenizer, prompt)
    if (marker := markers.search(prompt)) is None:
        return list(tokenizer.encode(text, add_special_tokens=False))
    # To find the prompt in the rendered text, render a placeholder: the rest is what the template writes around it.
    placeholder = "x7Qz" * 8
    around = _render(tokenizer, placeholder).split(placeholder)
    if len(around) != 2 or not (text.startswith(around[0]) and text.endswith(around[1])):
        raise LoraDropError(f"the model's chat template cannot hold {marker[0]!r} as plain text: leave it out.")
    # The tokenizer splits a text at its markers and encodes each part alone. So the part to encode as plain text
    # reaches from the template's last marker before the prompt to its first one after it: merges across the borders
    # are then the usual ones.
    start = max((match.end() for match in markers.finditer(around[0])), default=0)
    end = len(text) - len(around[1])
    end = match.start() if (match := markers.search(text, end)) else len(text)
    head, tail = text[:start], text[end:]
    ids = tokenizer.encode(head, add_special_tokens=False) if head else []
    ids = [*ids, *_encode_as_text(tokenizer, text[start:end], head)]
    return ids + (tokenizer.encode(tail, add_special_tokens=False) if tail else [])


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Plain text as token ids: no template, no start or end token; markers in it are ordinary text."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates are not text
    if isinstance(tokenizer, ByteTokenizer) or not _marker_pattern(tokenizer).search(text):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return _encode_as_text(tokenizer, text)


def _render(tokenizer: Any, content: str) -> str:
    """One user message rendered by the chat template."""
    import jinja2

    try:
        messages = [{"role": "user", "content": content}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise LoraDropError(f"the model's chat template does not take a single user message ({error}).") from error


def _marker_pattern(tokenizer: Any) -> re.Pattern[str]:
    """A pattern for the markers, the strings that the tokenizer turns into one token each; the longest come first."""
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, added)) or r"(?!)")


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that `encode` puts before and after a text, such as a start token."""
    whole, inner = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    at = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:at], whole[at + len(inner) :]


def _encode_as_text(tokenizer: Any, text: str, head: str = "") -> list[int]:
    """Token ids of a text whose markers are ordinary text.

    It runs the backend's steps without its added tokens. (`split_special_tokens=True` would set a switch on the
    tokenizer that other visitors' threads share, and would miss added tokens that are not special.)

    Args:
        head: the text before it, which ends with a marker.
    """
    if not tokenizer.is_fast:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def plain(part: str) -> list[int]:
        backend = tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            part = backend.normalizer.normalize_str(part)
        pieces = [part]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(part)]
        return [token.id for piece in pieces for token in backend.model.tokenize(piece)]

    # Some SentencePiece tokenizers put a space before the first word of a whole text but not after a marker. Encode a
    # newline first there, so that the space comes before it, and take both off again.
    before = tokenizer.encode(head, add_special_tokens=False) if head else []
    if head and tokenizer.encode(head + "a", add_special_tokens=False)[len(before) :] != plain("a"):
        newline, ids = plain("\n"), plain("\n" + text)
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
    return plain(text)


class ByteTokenizer:
    """Tokenizer of the random models: ids 0..255 are the bytes of UTF-8, then come a start and an end token."""

    bos_token_id = 256
    eos_token_id = 257
    pad_token_id = 257
    vocab_size = 258
    chat_template = None
    all_special_ids = (bos_token_id, eos_token_id)

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The start token (if special tokens are added), then the bytes. No text becomes a special token."""
        ids = list(text.encode("utf-8", errors="replace"))
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text; broken UTF-8 and ids beyond the vocabulary (large random models have them) become U+FFFD."""
        names = {} if skip_special_tokens else {self.bos_token_id: b"<bos>", self.eos_token_id: b"<eos>"}
        numbers = [int(i) for i in ([ids] if isinstance(ids, int) else ids)]
        parts = (bytes([i]) if i < 256 else names.get(i, b"") if i < self.vocab_size else b"\xff" for i in numbers)
        return b"".join(parts).decode("utf-8", errors="replace")


_BROKEN = "\ufffd"  # a tokenizer's text for bytes that are not (yet) UTF-8


class Detokenizer:
    """Incremental decoding with any tokenizer that has `decode(ids, skip_special_tokens=)`.

    A token's text depends on its neighbours (spaces, bytes of one character), so each new piece is the difference of
    two decodings over a short window. A token that ends in the middle of a character waits for the rest of it. The
    pieces join to the text of all tokens, except for a broken end.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # first token of the window
        self._settled = 0  # end of the window's first part, which is only context: its text is complete and returned
        self._returned = 0  # characters of the window's text that were returned
        self._before: list[tuple[int, int, int]] = []  # these three before each token

    def add(self, token_id: int) -> str:
        """Take a token; return the text that it completes, or "" if it waits."""
        self._ids.append(token_id)
        self._before.append((self._context, self._settled, self._returned))
        text = self._decode(self._ids[self._context :])
        whole = text.rstrip(_BROKEN)
        piece = whole[self._returned :]
        if whole == text:
            self._context, self._settled = self._settled, len(self._ids)
            self._returned = len(self._decode(self._ids[self._context :]))
        else:
            self._returned = max(self._returned, len(whole))
        return piece

    def rewind(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens, with the text that was returned for the others."""
        self._context, self._settled, self._returned = self._before[tokens]
        del self._ids[tokens:], self._before[tokens:]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of one token alone, for a label; special tokens have their names."""
    return tokenizer.decode([token_id], skip_special_tokens=False)
