"""Text for training: files of several kinds in, windows of tokens out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_drop.errors import LoraDropError, reading
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt, encode_text
from lora_drop.training.self_generate import Text, is_self_generated, read_self_generated

LEAST = 16  # fewest counted tokens of a window: among fewer, a long period may have no LoRA step


@dataclass(frozen=True)
class Turn:
    """Fields of a record that make a turn of chat.

    `instruction+input:output` joins two fields to one prompt, `instances.0.output` names a nested one.
    """

    prompt: tuple[str, ...]
    target: str

    @classmethod
    def parse(cls, text: str) -> Turn:
        """Parse PROMPT:TARGET. Raises LoraDropError."""
        prompt, _, target = text.partition(":")
        if not all((*prompt.split("+"), target)):
            raise LoraDropError(f"chat fields are PROMPT:TARGET, such as question:answer; got {text!r}.")
        return cls(tuple(prompt.split("+")), target)

    def of(self, record: Any) -> tuple[str, str] | None:
        """Prompt and target of a record; None if it lacks a field, or if one of the two is blank."""
        *parts, target = (_field(record, name) for name in (*self.prompt, self.target))
        if not all(isinstance(text, str) for text in (*parts, target)):
            return None
        prompt = "\n\n".join(text for text in parts if text.strip())
        return (prompt, target) if prompt and target.strip() else None


def _field(value: Any, path: str) -> Any:
    """Value at a path such as `instances.0.output`; None if there is none."""
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def read_texts(
    loaded: LoadedModel, paths: list[Path], turns: list[Turn] | None = None, file_tokens: int | None = None
) -> list[Text]:
    """Read the tokens of each text of some files, with an end token after each.

    A `.jsonl` file has a record a line and a `.json` file a list of records. A record with the fields of one of
    `turns` goes through the chat template, as the prompt and answer that decoding will see; the text of another record
    is all its strings. A file from `self_generate` has token ids. Any other file is plain text, of which each
    paragraph (up to a blank line) is a text.

    Args:
        file_tokens: leave a file after the text that reaches this many tokens, so that a long file does not outweigh
            the others; None reads all.

    Raises:
        LoraDropError: a file is missing, empty, not UTF-8 or not in the format of its name; no record has a turn's
            fields.
    """
    end = sorted(loaded.stop_ids)[:1]  # some models have none
    tokens: list[Text] = []
    unused = dict.fromkeys(turns or ())
    for path in paths:
        if path.is_char_device():
            raise LoraDropError(f"{path.name} is a device, and reading one may never end: give a file.")
        with reading(path.name):
            content = path.read_text(encoding="utf-8")
        if is_self_generated(content):
            tokens += read_self_generated(path, loaded)
            continue
        count = 0  # tokens
        for record in _records(path, content):
            if file_tokens is not None and count >= file_tokens:
                break
            turn, pair = next(((turn, pair) for turn in turns or () if (pair := turn.of(record))), (None, None))
            prompt: list[int] = []
            if turn and pair:
                unused.pop(turn, None)
                prompt, ids = encode_prompt(loaded.tokenizer, pair[0]), encode_text(loaded.tokenizer, pair[1])
            elif (text := "\n".join(_strings(record))).strip():
                ids = encode_text(loaded.tokenizer, text)
            else:
                continue
            tokens.append(Text([*prompt, *ids, *end], len(prompt)))
            count += len(tokens[-1])
        if not count:
            raise LoraDropError(f"{path.name} holds no text.")
    for turn in unused:
        raise LoraDropError(f"no record has the chat fields {'+'.join(turn.prompt)}:{turn.target}.")
    return tokens


def to_rows(texts: Sequence[Text], length: int) -> tuple[Tensor, Tensor]:
    """Cut texts into windows of tokens (N, length), and mark those that the loss counts, (N, length) bool.

    A reply begins a new window, and a long one continues in further windows. Its decode steps count; its prompt
    and the texts after it, which fill the window, do not. A reply of a few tokens is left out. All other text counts
    and is cut as in `to_windows`; so is all text if no reply is long enough.

    Raises:
        LoraDropError: there is less text than one window.
    """
    replies = [text for text in texts if text.prompt_tokens]
    other = [token for text in texts if not text.prompt_tokens for token in text]
    row = torch.tensor([token for text in replies for token in text], dtype=torch.long)
    row = torch.cat((row, row.repeat(-(-length // max(1, len(row))))))  # the first text follows the last one
    windows, counted, at = [], [], 0
    place = torch.arange(length)
    for text in replies:
        for start in range(0, len(text), length):
            # The last token is not read: nothing is decoded after it.
            counts = (place >= text.prompt_tokens - start) & (place < len(text) - 1 - start)
            if counts.sum() >= min(LEAST, length // 2):
                windows.append(row[at + start : at + start + length])
                counted.append(counts)
        at += len(text)
    if not windows or len(other) >= length:
        whole = to_windows([other] if windows else texts, length)
        windows += whole
        counted += torch.ones_like(whole, dtype=torch.bool)
    return torch.stack(windows), torch.stack(counted)


def to_windows(texts: Sequence[list[int]], length: int) -> Tensor:
    """Join all texts and cut them into windows of tokens (N, length); the rest at the end is dropped.

    Raises:
        LoraDropError: together they are shorter than one window.
    """
    tokens = [token for text in texts for token in text]
    if len(tokens) < length:
        raise LoraDropError(f"the training text has {len(tokens)} tokens, less than one window of {length}.")
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length]).view(count, length)


def _records(path: Path, content: str) -> list[Any]:
    if path.suffix not in (".json", ".jsonl"):
        return content.split("\n\n")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in content.splitlines() if line.strip()]
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LoraDropError(f"{path.name} is not {path.suffix[1:].upper()}: {error}.") from None
    return records if isinstance(records, list) else [records]


def _strings(record: Any) -> list[str]:
    """All strings in a record, nested ones too, in its order."""
    strings, left = [], [record]
    while left:
        value = left.pop()
        if isinstance(value, str):
            strings.append(value)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left.extend(reversed(list(inner)))
    return strings
