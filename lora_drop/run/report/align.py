"""Two answers, word by word: where they first differ, and how their words stand beside each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any, Literal

ALIGNED = 2000  # words after the first difference that are aligned; those after them stand by their place
# A sign of a script that is written without spaces is a word of its own.
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\s{_SIGNS}]+")


@dataclass(frozen=True)
class Piece:
    """A run of words: the same in both answers, or what one has in the other's place (either may be empty)."""

    kind: Literal["same", "differ"]
    one: list[str]
    other: list[str]

    @property
    def places(self) -> int:
        """Words that it takes, side by side."""
        return max(len(self.one), len(self.other))


@dataclass(frozen=True)
class Alignment:
    """Two answers' words side by side: the pieces in order give both answers."""

    pieces: list[Piece]

    @property
    def first(self) -> int | None:
        """Index of the first word that differs; None if none does."""
        if all(piece.kind == "same" for piece in self.pieces):
            return None
        return len(self.pieces[0].one) if self.pieces[0].kind == "same" else 0

    @property
    def counts(self) -> dict[str, int | None]:
        """`{"full", "lane", "all", "differ", "first"}`: words of either, of both side by side, and those that differ;
        `first` is the property."""
        return {
            "full": sum(len(piece.one) for piece in self.pieces),
            "lane": sum(len(piece.other) for piece in self.pieces),
            "all": sum(piece.places for piece in self.pieces),
            "differ": sum(piece.places for piece in self.pieces if piece.kind == "differ"),
            "first": self.first,
        }


def words_of(text: str) -> list[str]:
    """The words of a text: what stands between spaces, and each Chinese or Japanese sign."""
    return _WORD.findall(text)


def text_of(words: list[str]) -> str:
    """Words as a text again: with a space between them, but beside a Chinese or Japanese sign."""
    return re.sub(rf" (?=[{_SIGNS}])|(?<=[{_SIGNS}]) ", "", " ".join(words))


def word_at(texts: list[str], token: int) -> int:
    """Index of the word that a token belongs to, or begins.

    Args:
        texts: the text of each token.
    """
    before, own = "".join(texts[:token]), texts[token]
    begun = own[: len(own) - len(own.lstrip()) + 1]  # up to its first sign: is that one of the word before?
    return len(words_of(before + begun)) - bool(own.strip())


def align(one: str, other: str) -> Alignment:
    """The words of two answers side by side, by their longest common runs."""
    a, b = words_of(one), words_of(other)
    both = min(len(a), len(b))
    first = next((i for i in range(both) if a[i] != b[i]), both)
    end_a, end_b = min(len(a), first + ALIGNED), min(len(b), first + ALIGNED)
    found = [(a[:first], b[:first])] if first else []
    matcher = SequenceMatcher(None, a[first:end_a], b[first:end_b])
    found += [
        (a[first + i : first + i_end], b[first + j : first + j_end]) for _, i, i_end, j, j_end in matcher.get_opcodes()
    ]
    found.append((a[end_a:], b[end_b:]))
    return Alignment([Piece("same" if x == y else "differ", x, y) for x, y in found if x or y])


def side_by_side(one: str, other: str) -> dict[str, Any]:
    """Two answers' words beside each other, aligned as the verdict aligns them.

    Returns:
        `{"text", "pieces"}`: how many differ, in a sentence, and in order `[kind, words of one, words of the other]`;
        both are the same text where the kind is `same`.
    """
    found = align(one, other)
    first, counts = found.first, found.counts
    same = f"All {counts['all']:,} words are the same."
    differ = f"Of {counts['all']:,} words side by side {counts['differ']:,} differ, from word {(first or 0) + 1:,} on."
    pieces = [[piece.kind, text_of(piece.one), text_of(piece.other)] for piece in found.pieces]
    return {"text": same if first is None else differ, "pieces": pieces}


def answers_side_by_side(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """`side_by_side` for any two of a run's answers, with `lanes`, their ids; of more than three the first three."""
    pairs = combinations(list(texts)[:3], 2)
    return [{"lanes": [one, other], **side_by_side(texts[one], texts[other])} for one, other in pairs]
