"""Cuts text of any language into words that can be compared.

    [word.key for word in words_of("Standard & Poor's S&P 500")]     # standard, poor, s, s, p, 500
    [word.key for word in words_of("1,234.50 кораблей")]             # 1234.5, кораблеи
    [word.key for word in words_of("東京都")]                          # 東, 京, 都

A word is a run of letters (with their marks), a number, or one character of a script that is written without spaces.
Keys are casefolded, in compatibility form (NFKC), and without accents, so that spellings of a word compare equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

_NUMBER = re.compile(r"\d+(?:[.,'’\xa0\u202f\u066b\u066c]\d+)*")
_SEPARATORS = re.compile(r"[.,'’\xa0\u202f\u066b\u066c]")

_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF, "Thai, Lao"),
    (0x1000, 0x109F, "Burmese"),
    (0x1780, 0x17FF, "Khmer"),
    (0x3005, 0x3007, "Chinese and Japanese iteration marks"),
    (0x3040, 0x31FF, "Hiragana, Katakana, Bopomofo"),
    (0x3400, 0x4DBF, "Chinese characters, extension A"),
    (0x4E00, 0x9FFF, "Chinese characters"),
    (0xF900, 0xFAFF, "Chinese characters, compatibility"),
    (0xFF66, 0xFF9F, "Katakana, half width"),
    (0x20000, 0x3FFFF, "Chinese characters, further extensions"),
)

_ACCENTS = ((0x0300, 0x036F), (0x0591, 0x05C7), (0x064B, 0x0652))
"""Marks that are often left out: of Latin, Greek and Cyrillic; Hebrew points; Arabic vowel signs."""


Kind = Literal["letters", "number", "character"]
"""A character is a word of a script that is written without spaces."""


@dataclass(frozen=True)
class Word:
    """A word at ``text[start:end]``. Words with the same ``key`` are the same word."""

    key: str
    start: int
    end: int
    kind: Kind = "letters"
    joins_next: bool = False
    """It is a character of a script without spaces, and so is what directly follows it."""


def words_of(text: str) -> list[Word]:
    """The words of a text, in order. Punctuation and symbols are none."""
    found: list[Word] = []
    position = 0
    for match in _NUMBER.finditer(text):
        found += _letters(text, position, match.start())
        found.append(Word(_number_key(match[0]), match.start(), match.end(), "number"))
        position = match.end()
    return found + list(_letters(text, position, len(text)))


def _letters(text: str, start: int, end: int) -> Iterator[Word]:
    for kind, places in groupby(range(start, end), key=lambda place: _kind(text[place])):
        run = list(places)
        if kind == "letters":
            yield Word(_key(text[run[0] : run[-1] + 1]), run[0], run[-1] + 1)
        elif kind == "character":
            yield from (Word(_key(text[at]), at, at + 1, "character", at != run[-1]) for at in run)


def _kind(character: str) -> Kind | None:
    """What the character is, or is a part of; None between words."""
    if unicodedata.category(character)[0] not in "LMN":
        return None
    code = ord(character)
    without_spaces = code >= 0x0E00 and any(first <= code <= last for first, last, _ in _WITHOUT_SPACES)
    return "character" if without_spaces else "letters"


def _key(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    plain = "".join(c for c in decomposed if not any(first <= ord(c) <= last for first, last in _ACCENTS))
    return unicodedata.normalize("NFC", plain).casefold() or word


def _number_key(number: str) -> str:
    """A number in ASCII digits, without marks between its thousands and without zeros that say nothing.

    Groups of three digits are thousands, so that 1,234 and 1.234 are the same, whoever wrote them.
    """
    groups = ["".join(str(unicodedata.decimal(c)) for c in group) for group in _SEPARATORS.split(number)]
    head, tail = groups[0], groups[1:]
    while tail and len(tail[0]) == 3:
        head += tail.pop(0)
    if len(tail) == 1:
        tail = [digits for digits in [tail[0].rstrip("0")] if digits]
    return ".".join([head.lstrip("0") or "0", *tail])
