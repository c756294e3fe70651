"""Text to tokens and back: prompts through the chat template, streaming detokenisation, a byte tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lora_drop.errors import LoraDropError

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # markers of thoughts: Qwen3 and DeepSeek, Magistral
THINKING = "enable_thinking"  # variable of a chat template that has the choice


def encode_prompt(
    tokenizer: Any, prompt: str, chat: bool = True, system: str | None = None, thinking: str = "auto"
) -> list[int]:
    """The prompt as token ids, through the chat template where there is one (and `chat` is true).

    A prompt is plain text: `<|im_end|>` in it becomes ordinary tokens and cannot end the turn. Prompts without such
    markers have exactly the tokens of `apply_chat_template` (or of `encode`).

    Args:
        tokenizer: a transformers tokenizer or a ByteTokenizer.
        prompt: one user message.
        chat: False for plain text, with the tokenizer's start token.
        system: a system message before it, which the chat template must take.
        thinking: `on` or `off` for a template that has the choice; `auto` leaves it alone.

    Raises:
        LoraDropError: the prompt is empty, or the chat template cannot hold it, or has no such choice.
    """
    if not prompt.strip():
        raise LoraDropError("the prompt is empty: write something.")
    template = str(tokenizer.chat_template or "") if chat else ""
    for words, is_set, has_it in (
        ("system message", system is not None, template),
        ("choice of thinking", thinking != "auto", THINKING in template),
    ):
        if is_set and not has_it:
            raise LoraDropError(
                f"there is no {words} {'in this' if template else 'without a'} chat template: unset it."
            )
    # Lone surrogates are not text.
    texts = [text.encode("utf-8", errors="replace").decode("utf-8") for text in (system, prompt) if text is not None]
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.encode(texts[-1])
    markers = _marker_pattern(tokenizer)
    marker = next(filter(None, map(markers.search, texts)), None)
    if not template:
        if not marker:
            return list(tokenizer.encode(prompt))
        before, after = _frame(tokenizer)
        return [*before, *_encode_as_text(tokenizer, prompt), *after]
    options = {} if thinking == "auto" else {THINKING: thinking == "on"}
    whole = _render(tokenizer, texts, options)
    if not marker and all(text.strip() in whole for text in texts[:-1]):
        return list(tokenizer.encode(whole, add_special_tokens=False))
    # To find the texts in the rendered one, render placeholders: the rest is what the template writes around them.
    places = [word * 8 for word in ("x7Qz", "q3Vw")[: len(texts)]]
    around = re.split("|".join(places), _render(tokenizer, places, options))
    pieces = around[:1]
    for at, text in enumerate(texts if len(around) == len(texts) + 1 else ()):
        rendered = _render(tokenizer, [*places[:at], text, *places[at + 1 :]], options)
        start = sum(map(len, around[: at + 1])) + sum(map(len, places[:at]))
        rest = sum(map(len, around[at + 1 :])) + sum(map(len, places[at + 1 :]))
        pieces += [rendered[start : len(rendered) - rest], around[at + 1]]
    if "".join(pieces) != whole:
        words = f"{marker[0]!r} as plain text" if marker else "a system message"
        raise LoraDropError(f"the model's chat template cannot hold {words}: leave it out.")
    return _encode_around(tokenizer, markers, pieces)


def _encode_around(tokenizer: Any, markers: re.Pattern[str], pieces: list[str]) -> list[int]:
    """Token ids of a template's pieces with plain text between them: every other piece.

    The tokenizer splits a text at its markers and encodes each part alone. So what is encoded as plain text reaches
    from the template's last marker before a text to its first one after it: merges across the borders are then the
    usual ones.
    """
    ids: list[int] = []
    head = plain = ""  # the template's last markers with the text between them, and what follows them
    for at, piece in enumerate(pieces):
        marks = [] if at % 2 else list(markers.finditer(piece))
        if not marks:
            plain += piece
            continue
        start, end = marks[0].start() if at else 0, marks[-1].end()
        plain += piece[:start]
        ids += _encode_as_text(tokenizer, plain, head) if plain else []
        head, plain = piece[start:end], piece[end:]
        ids += tokenizer.encode(head, add_special_tokens=False)
    return ids + (_encode_as_text(tokenizer, plain, head) if plain else [])


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Plain text as token ids: no template, no start or end token; markers in it are ordinary text."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates are not text
    if isinstance(tokenizer, ByteTokenizer) or not _marker_pattern(tokenizer).search(text):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return _encode_as_text(tokenizer, text)


def _render(tokenizer: Any, texts: list[str], options: dict[str, bool]) -> str:
    """A user message, with a system message before it if there are two texts, rendered by the chat template."""
    import jinja2

    roles = ("system", "user")[-len(texts) :]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    except jinja2.TemplateError as error:
        words = "a single user message" if len(texts) == 1 else "a system message"
        raise LoraDropError(f"the model's chat template does not take {words} ({error}).") from error


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
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class Thoughts:
    """Tells which tokens of an answer are the model's thoughts, its markers for them included.

    Args:
        prompt_ids: a template may open the thoughts.
    """

    def __init__(self, tokenizer: Any, prompt_ids: list[int]):
        ids = {} if isinstance(tokenizer, ByteTokenizer) else tokenizer.get_added_vocab()
        self._starts, self._ends = (
            {ids[word] for word in words if word in ids} for words in zip(*THOUGHTS, strict=True)
        )
        self._are_open = [False]  # after the prompt, and after each token
        for token_id in prompt_ids:
            self.add(token_id)
        del self._are_open[:-1]

    def add(self, token_id: int) -> bool:
        """Take a token; return whether it belongs to the thoughts."""
        was_open = self._are_open[-1]
        self._are_open.append(token_id in self._starts or (was_open and token_id not in self._ends))
        return was_open or self._are_open[-1]

    def rewind(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        del self._are_open[tokens + 1 :]


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of one token alone, for a label; special tokens have their names."""
    return str(tokenizer.decode([token_id], skip_special_tokens=False))
