"""Takes the citation markup out of an answer while it arrives, and finds out what it cites.

    <co: 0,2>Best Buy</co: 0,2> was called Sound of Music      Best Buy was called Sound of Music
                                                               ^^^^^^^^ documents 0 and 2

Two machines, one above the other: `TagSplitter` tells tags from text, `CitedText` trims the text, counts its code
points, and turns pairs of tags into citations. Tags nest; a closing tag closes the innermost open one; its numbers
count, or the opening tag's if it has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quarterdeck.chat.messages import Citation, CitationEvent, Event, Source, TextDelta
from quarterdeck.chat.parsing.trimming import Trimmer

Resolver = Callable[[tuple[int, ...]], tuple[Source, ...]]
"""From the numbers of documents to the documents, without those that do not exist."""

Report = Callable[[str], None]
"""Takes note of something that a model wrote and that had to be mended or left out."""

TAG = re.compile(r"<(/?)co(?::([^<>\n]{0,64}))?>")
TAG_BEGUN = re.compile(r"<(?:/?(?:c(?:o(?::[^<>\n]{0,64})?)?)?)?")
UNFINISHED = ("<co", "</co")
"""What a tag that the end of the text cut short begins with; shorter beginnings are text."""

_NUMBER = re.compile(r"[0-9]{1,64}")


def numbers_in(text: str) -> tuple[int, ...]:
    """The comma-separated decimal integers of a text, in order. All else is ignored, also over 64 digits."""
    items = (item.strip() for item in text.split(","))
    return tuple(int(item) for item in items if _NUMBER.fullmatch(item))


@dataclass(frozen=True)
class Tag:
    """``<co: 0,1>`` or ``</co: 0,1>``."""

    closing: bool
    numbers: tuple[int, ...]


class TagSplitter:
    """Tells tags from text. Withholds what may still become a tag: 69 characters at most."""

    def __init__(self) -> None:
        self._withheld = ""

    def feed(self, text: str) -> Iterator[str | Tag]:
        """Pieces of text, and the tags between them."""
        text, self._withheld = self._withheld + text, ""
        position = 0
        while position < len(text):
            start = text.find("<", position)
            if start != position:
                yield text[position : start if start > 0 else len(text)]
                position = start if start > 0 else len(text)
            elif (match := TAG.match(text, position)) is not None:
                yield Tag(bool(match[1]), tuple(dict.fromkeys(numbers_in(match[2] or ""))))
                position = match.end()
            elif TAG_BEGUN.fullmatch(text, position):
                self._withheld = text[position:]
                return
            else:
                yield "<"
                position += 1

    def close(self) -> str:
        """The rest: what did not become a tag, unless it was well on its way (``<co`` and more)."""
        rest, self._withheld = self._withheld, ""
        return "" if rest.startswith(UNFINISHED) else rest


@dataclass
class _Open:
    """An open tag, and where its span starts: at the first character after it that is no white space."""

    numbers: tuple[int, ...]
    start: int | None = None


class CitedText:
    """Text with citation markup to clean, trimmed text and its citations.

    Args:
        resolve: finds the sources of a citation; None reports no citations (tags still disappear).
        report: told of tags and citations that had to be dropped.
    """

    def __init__(self, resolve: Resolver | None, report: Report) -> None:
        self._resolve = resolve
        self._report = report
        self._tags = TagSplitter()
        self._trimmer = Trimmer()
        self._clean: list[str] = []
        self._length = 0
        self._open: list[_Open] = []
        self._found = 0

    def feed(self, text: str) -> list[Event]:
        """`TextDelta` for clean text as soon as it is certain, `CitationEvent` at the end of each closing tag."""
        events: list[Event] = []
        for piece in self._tags.feed(text):
            events += self._text(piece) if isinstance(piece, str) else self._tag(piece)
        return events

    def close(self) -> list[Event]:
        """What was withheld."""
        events = self._text(self._tags.close())
        if self._open and self._resolve is not None:
            self._report(f"{len(self._open)} citation tags are never closed")
        return events

    def _text(self, piece: str) -> list[Event]:
        certain = self._trimmer.feed(piece)
        if not certain:
            return []
        start = self._length + len(certain) - len(certain.lstrip())
        for tag in reversed(self._open):
            if tag.start is not None:
                break
            tag.start = start
        self._clean.append(certain)
        self._length += len(certain)
        return [TextDelta(certain)]

    def _tag(self, tag: Tag) -> list[Event]:
        if self._resolve is None:
            return []
        if not tag.closing:
            self._open.append(_Open(tag.numbers))
            return []
        if not self._open:
            self._report("a citation tag is closed that was never opened")
            return []
        opening = self._open.pop()
        return self._cite(opening.start, tag.numbers or opening.numbers, self._resolve)

    def _cite(self, start: int | None, numbers: tuple[int, ...], resolve: Resolver) -> list[Event]:
        if start is None:
            self._report("a citation covers no text")
            return []
        sources = resolve(numbers)
        if not sources:
            shown = ", ".join(map(str, numbers)) or "no document"
            self._report(f"the citation of characters {start} to {self._length} names {shown}, which is not there")
            return []
        self._clean = ["".join(self._clean)]
        citation = Citation(start, self._length, self._clean[0][start:], sources)
        self._found += 1
        return [CitationEvent(self._found - 1, citation)]


def resolver(sources: Sequence[Source] | None) -> Resolver:
    """Finds sources by their number in the prompt; without sources every number stands for a document ``doc:{n}``."""
    if sources is None:
        return lambda numbers: tuple(Source("document", f"doc:{number}", number, {}) for number in numbers)
    by_number: Mapping[int, Source] = {source.index: source for source in sources}
    return lambda numbers: tuple(by_number[number] for number in numbers if number in by_number)
