"""Two answers word by word: where they first differ, and which words stand in each other's place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any, Literal

ALIGNED = 2000  # words after the first difference that are aligned; the rest is one piece
# Each character of a script without spaces is a word.
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\s{_SIGNS}]+")


@dataclass(frozen=True)
class Piece:
    """Words that both answers share, or words of the left where the right has others; either side may be empty."""

    kind: Literal["same", "differ"]
    left: list[str]
    right: list[str]

    @property
    def places(self) -> int:
        """Words that the piece takes, side by side."""
        return max(len(self.left), len(self.right))


@dataclass(frozen=True)
class Alignment:
    """Two answers' words side by side: the pieces in order give both answers."""

    pieces: list[Piece]

    @property
    def first(self) -> int | None:
        """Index of the first word that differs; None if none does."""
        if all(piece.kind == "same" for piece in self.pieces):
            return None
        return len(self.pieces[0].left) if self.pieces[0].kind == "same" else 0

    @property
    def counts(self) -> dict[str, int | None]:
        """`{"full", "lane", "all", "differ", "first"}`: words of the left answer (the full model's), of the right (the
        lane's), of both side by side, and those that differ; `first` is the property."""
        return {
            "full": sum(len(piece.left) for piece in self.pieces),
            "lane": sum(len(piece.right) for piece in self.pieces),
            "all": sum(piece.places for piece in self.pieces),
            "differ": sum(piece.places for piece in self.pieces if piece.kind == "differ"),
            "first": self.first,
        }


def words_of(text: str) -> list[str]:
    """The words of a text: split at spaces, and each Chinese or Japanese character by itself."""
    return _WORD.findall(text)


def text_of(words: list[str]) -> str:
    """Words as a text: a space between them, but none beside a Chinese or Japanese character."""
    return re.sub(rf" (?=[{_SIGNS}])|(?<=[{_SIGNS}]) ", "", " ".join(words))


def word_at(texts: list[str], token: int) -> int:
    """Index of the word that a token belongs to, or begins.

    Args:
        texts: the text of each token.
    """
    before, text = "".join(texts[:token]), texts[token]
    begun = text[: len(text) - len(text.lstrip()) + 1]  # up to its first character: does it continue the word before?
    return len(words_of(before + begun)) - bool(text.strip())


def align(left: str, right: str) -> Alignment:
    """The words of two answers side by side, by their longest common runs."""
    a, b = words_of(left), words_of(right)
    both = min(len(a), len(b))
    first = next((i for i in range(both) if a[i] != b[i]), both)
    end_a, end_b = min(len(a), first + ALIGNED), min(len(b), first + ALIGNED)
    pairs = [(a[:first], b[:first])]
    matcher = SequenceMatcher(None, a[first:end_a], b[first:end_b])
    for _, i, i_end, j, j_end in matcher.get_opcodes():
        pairs.append((a[first + i : first + i_end], b[first + j : first + j_end]))
    pairs.append((a[end_a:], b[end_b:]))
    return Alignment([Piece("same" if x == y else "differ", x, y) for x, y in pairs if x or y])


def side_by_side(left: str, right: str) -> dict[str, Any]:
    """Two answers' words side by side, aligned as for the verdict.

    Returns:
        `{"text", "pieces"}`: how many differ, in a sentence, and in order `[kind, left words, right words]`.
    """
    alignment = align(left, right)
    first, counts = alignment.first, alignment.counts
    same = f"All {counts['all']:,} words are the same."
    differ = f"Of {counts['all']:,} words side by side {counts['differ']:,} differ, from word {(first or 0) + 1:,} on."
    pieces = [[piece.kind, text_of(piece.left), text_of(piece.right)] for piece in alignment.pieces]
    return {"text": same if first is None else differ, "pieces": pieces}


def answers_side_by_side(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """`side_by_side` of each two of a run's first three answers, with `lanes`, their ids."""
    pairs = combinations(list(texts)[:3], 2)
    return [{"lanes": [left, right], **side_by_side(texts[left], texts[right])} for left, right in pairs]
