"""Cuts a text into passages that are short enough to be cited.

The rule:

- A block is what stands between blank lines; in Markdown also a heading, and a fenced piece of code as a whole.
- A passage is as many blocks as fit into 1,200 characters, in their order. In Markdown it never runs over a heading.
- A block that is longer is joined to what precedes it in its passage, and both are cut after the last sentence or line
  that ends in the second half of what fits, or else at white space, or else at the limit.
- Passages do not overlap, and nothing is left out but white space between them: each is a piece of the text as it is.

About 1,200 characters are 200 English words or 300 tokens: Command-R was trained on documents of 100 to 400 words.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARACTERS = 1200

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*\n?")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`\n]*$)|~{3,})", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]['\")\]»”’]*(?=\s)|[。！？｡]|\n")
_WHITE_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Chunk:
    """A passage of a text.

    Args:
        text: the passage, without white space around it.
        first_line, last_line: where it stands, from 1 on; the last line is included.
        headings: those that it stands under, from the outermost to the innermost.
    """

    text: str
    first_line: int
    last_line: int
    headings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Block:
    """``text[start:end]``; ``level`` is 1..6 for a heading and 0 for all else."""

    start: int
    end: int
    level: int = 0
    title: str = ""


def chunks_of(text: str, *, markdown: bool = False, limit: int = MAX_CHARACTERS) -> list[Chunk]:
    """The passages of a text, as the rule above says.

    Args:
        text: its lines end in a line feed.
        markdown: headings and fenced code count.
        limit: most characters of a passage, at least 1.
    """
    line_starts = [0, *(match.end() for match in _LINE.finditer(text))]
    found = []
    for start, end, headings in _passages(text, list(_blocks(text, markdown)), limit):
        first, last = (bisect.bisect_right(line_starts, place) for place in (start, end - 1))
        found.append(Chunk(text[start:end], first, last, headings))
    return found


def _blocks(text: str, markdown: bool) -> Iterator[_Block]:
    """Runs of lines that are not blank, headings, and fenced code; without white space around them."""
    start: int | None = None
    end = 0
    fence = ""
    for line in _LINE.finditer(text):
        visible = line[0].strip()
        if fence:
            end = line.end()
            fence = "" if _closes(visible, fence) else fence
            continue
        heading = _HEADING.fullmatch(line[0]) if markdown else None
        if (heading or not visible) and start is not None:
            yield _trimmed(text, start, end)
            start = None
        if heading:
            place = _trimmed(text, line.start(), line.end())
            yield _Block(place.start, place.end, len(heading[1]), (heading[2] or "").strip())
        elif visible:
            start = line.start() if start is None else start
            end = line.end()
            opening = _FENCE.match(line[0]) if markdown else None
            fence = opening[1] if opening else ""
    if start is not None:
        yield _trimmed(text, start, end)


def _closes(line: str, fence: str) -> bool:
    return len(line) >= len(fence) and not line.strip(fence[0])


def _trimmed(text: str, start: int, end: int) -> _Block:
    """Without white space around it; there is something else in it."""
    piece = text[start:end]
    return _Block(start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip()))


def _passages(text: str, blocks: list[_Block], limit: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Start, end and headings of each passage."""
    open_headings: list[_Block] = []
    current: tuple[int, int, tuple[str, ...]] | None = None
    has_body = False
    for block in blocks:
        if block.level:
            open_headings = [one for one in open_headings if one.level < block.level] + [block]
        headings = tuple(one.title for one in open_headings if one.title)
        is_full = current is not None and block.end - current[0] > limit and block.end - block.start <= limit
        if current is not None and has_body and (is_full or block.level):
            yield current
            current = None
        has_body = not block.level or (current is not None and has_body)
        *whole, rest = _pieces(text, block.start if current is None else current[0], block.end, limit)
        for start, end in whole:
            yield start, end, headings
        current = (*rest, headings)
    if current is not None:
        yield current


def _pieces(text: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    """``text[start:end]``, cut if it is longer than the limit; neither it nor the pieces have white space around."""
    while end - start > limit:
        cut = start + _place_to_cut(text[start : start + limit + 1], limit)
        yield start, start + len(text[start:cut].rstrip())
        start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    yield start, end


def _place_to_cut(window: str, limit: int) -> int:
    """Where to cut a text of which one character more than the limit is seen."""
    for ends, least in ((_SENTENCE_END, (limit + 1) // 2), (_WHITE_SPACE, 1)):
        places = [match.end() for match in ends.finditer(window) if least <= match.end() <= limit]
        if places:
            return places[-1]
    return limit
