"""BERT's tokenizer for uncased text: words and punctuation, then a vocabulary's longest pieces.

The rules are those of the BERT paper's code (Devlin et al., 2019): clean, lower, strip accents,
split at white space, punctuation and Chinese characters; then, in each word, greedily the longest
piece that the vocabulary has ("##" marks one that continues a word).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LONGEST_WORD = 100
"""Longer words are unknown ones, as in BERT's code."""

IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""Unicode's blocks of Chinese characters, each of which is a word."""


class WordPiece:
    """A tokenizer with its vocabulary.

    Args:
        vocabulary: a text file with one piece a line; a piece's number is its line's, from 0.
    """

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self.numbers = {piece: number for number, piece in enumerate(lines)}

    def encode(self, text: str, limit: int = 512) -> list[int]:
        """Numbers of a text's pieces between [CLS] and [SEP], ``limit`` of them at most."""
        numbers = [n for word in words(text) for n in self._pieces(word)]
        return [self.numbers["[CLS]"], *numbers[: limit - 2], self.numbers["[SEP]"]]

    def batch(self, texts: Sequence[str], limit: int = 512) -> tuple[Array, Array]:
        """Texts as rows of one length.

        Returns:
            Piece numbers, int32[texts, length], and the mask of what is no padding,
            float32[texts, length].
        """
        rows = [self.encode(text, limit) for text in texts]
        tokens = np.full((len(rows), max(map(len, rows))), self.numbers["[PAD]"], np.int32)
        mask = np.zeros(tokens.shape, np.float32)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = row
            mask[at, : len(row)] = 1
        return tokens, mask

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.numbers["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        found: list[int] = []
        start = 0
        while start < len(word):
            number, start = self._longest(word, start)
            if number is None:
                return unknown
            found.append(number)
        return found

    def _longest(self, word: str, start: int) -> tuple[int | None, int]:
        """The longest piece from ``start`` on, and where it ends."""
        for end in range(len(word), start, -1):
            number = self.numbers.get("##" * (start > 0) + word[start:end])
            if number is not None:
                return number, end
        return None, len(word)


def words(text: str) -> Iterator[str]:
    """Words, punctuation marks and Chinese characters of a text, lowered and without accents."""
    spaced = "".join(_spaced(c) for c in text)
    plain = unicodedata.normalize("NFD", spaced.lower())
    for chunk in "".join(c for c in plain if unicodedata.category(c) != "Mn").split():
        word = ""
        for c in chunk:
            if not _is_punctuation(c):
                word += c
                continue
            if word:
                yield word
            yield c
            word = ""
        if word:
            yield word


def _spaced(c: str) -> str:
    """A character as it goes on: nothing, white space, apart from its neighbours, or itself."""
    if c in "\t\n\r" or unicodedata.category(c) == "Zs":
        return " "
    if c in "\0\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    code = ord(c)
    return f" {c} " if any(low <= code <= high for low, high in IDEOGRAPHS) else c


def _is_punctuation(c: str) -> bool:
    """Unicode's punctuation, and what ASCII has beside letters and digits ($, +, ^, ...)."""
    ascii_mark = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return ascii_mark or unicodedata.category(c).startswith("P")
