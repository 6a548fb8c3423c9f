"""Cuts JSON text into pieces while it arrives: brackets, parts of strings, parts of other scalars; no white space.

    splitter = JsonSplitter()
    list(splitter.feed('{"a b": 1'))     # pieces "{"   '"'   "a b"   '"'   ":"   "1"

Nothing is refused here: what is not JSON comes out as pieces that are not JSON when they are joined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What a piece is."""

    OPENER = auto()
    CLOSER = auto()
    COMMA = auto()
    COLON = auto()
    QUOTE = auto()
    """Either end of a string."""
    INSIDE = auto()
    """A part of the inside of a string, as it was written, but for raw control characters, which are escaped."""
    BARE = auto()
    """A part of anything else: numbers, literals, and what is not JSON."""


class Piece(NamedTuple):
    """A part of JSON text."""

    kind: Kind
    text: str


_KINDS = {"{": Kind.OPENER, "[": Kind.OPENER, "}": Kind.CLOSER, "]": Kind.CLOSER, ",": Kind.COMMA, ":": Kind.COLON}
_OUTSIDE = re.compile(r'\s+|["{}\[\],:]|[^\s"{}\[\],:]+')
_INSIDE = re.compile(r'[\x00-\x1f]|["\\]|[^\x00-\x1f"\\]+')


class JsonSplitter:
    """Cuts JSON text into pieces as it arrives; withholds nothing.

    White space between two bare pieces is kept as one space: without it ``1 2`` would become the number 12.
    """

    def __init__(self) -> None:
        self._in_string = False
        self._escaped = False
        self._after_bare = False
        self._gap = ""

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces of the text."""
        position = 0
        while position < len(text):
            if self._escaped:
                piece: Piece | None = Piece(Kind.INSIDE, _printable(text[position]))
                position += 1
                self._escaped = False
            else:
                match = (_INSIDE if self._in_string else _OUTSIDE).match(text, position)
                assert match is not None, "the alternatives cover every character"
                piece = self._inside(match[0]) if self._in_string else self._outside(match[0])
                position = match.end()
            if piece is not None:
                yield piece

    def _inside(self, found: str) -> Piece:
        if found == '"':
            self._in_string = False
            return Piece(Kind.QUOTE, found)
        self._escaped = found == "\\"
        return Piece(Kind.INSIDE, _printable(found))

    def _outside(self, found: str) -> Piece | None:
        if found.isspace():
            self._gap = " " if self._after_bare else ""
            return None
        gap, self._gap = self._gap, ""
        self._in_string = found == '"'
        kind = Kind.QUOTE if self._in_string else _KINDS.get(found, Kind.BARE)
        self._after_bare = kind is Kind.BARE
        return Piece(kind, gap + found if kind is Kind.BARE else found)


def _printable(text: str) -> str:
    return text if text >= " " else json.dumps(text)[1:-1]


def unescaped(inside: str) -> str:
    """What the inside of a string stands for; the text itself if its escapes are wrong. Lone surrogates are U+FFFD."""
    try:
        value = str(json.loads(f'"{inside}"'))
    except ValueError:
        value = inside
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
