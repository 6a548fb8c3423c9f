"""Cited answers with footnotes that open into their sources.

    Emperor penguins[1] only live in Antarctica[1][2].

    Sources
    [1] Tall penguins (penguins.md:1-9)
        "Emperor penguins are the tallest"
    [2] Habitats (doc:1)
        "only live in Antarctica"

Every source that an answer cites has a number of its own, in the order in which they come up. Below it stand the places
of the source that the citations rest on, as `quarterdeck.chat.documents.checking` finds them, and a
warning where it finds none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from quarterdeck.chat.documents.checking import check_citations
from quarterdeck.chat.json_text import compact
from quarterdeck.chat.messages import (
    Citation,
    CitationEvent,
    Event,
    MessageEnd,
    PlanDelta,
    Source,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

LEAST_SUPPORT = 0.5
"""Citations that score less get a warning."""

LONGEST_QUOTE = 240

_PLACE = re.compile(r"(.+):[0-9]+-[0-9]+")
_RESULT = re.compile(r"(.+)_[a-z0-9]{12}:[0-9]+")  # the id of a tool's result: the call's, and a number
_WEB_ADDRESS = re.compile(r"https?://[^\s\x00-\x20\x7f-\x9f]+")


@dataclass
class Footnote:
    """A source that an answer cites.

    Args:
        number: from 1 on.
        source: what it opens into.
        quotes: places in it that citations rest on.
        doubts: warnings about citations that no source supports.
    """

    number: int
    source: Source
    quotes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """What stands in the text."""
        return f"[{self.number}]"

    @property
    def heading(self) -> str:
        """Title and place of the source, or the place alone: its web address, the tool it is from, or its id."""
        title = self.source.data.get("title")
        called = _RESULT.fullmatch(self.source.id) if self.source.type == "tool" else None
        place = self.source.data.get("url") or (called[1] if called else self.source.id)
        return f"{' '.join(title.split())} ({place})" if isinstance(title, str) and title.strip() else str(place)

    @property
    def link(self) -> str | None:
        """Where a terminal can open the source: its web address or its file, if it has one."""
        url = self.source.data.get("url")
        if isinstance(url, str):
            return url if _WEB_ADDRESS.fullmatch(url) else None
        place = _PLACE.fullmatch(self.source.id)
        path = Path(place[1]) if place else None
        return path.resolve().as_uri() if path is not None and path.is_file() else None

    @property
    def opened(self) -> str:
        """The whole source, a field per line, as the model saw it."""
        return "\n".join(f"{key}: {_shown(value)}" for key, value in self.source.data.items())

    def lines(self) -> list[str]:
        """The footnote as lines of text."""
        quotes = [f'"{_clipped(quote)}"' for quote in self.quotes]
        return [f"{self.mark} {self.heading}", *(f"    {line}" for line in [*quotes, *self.doubts])]


class Footnotes:
    """The footnotes of one answer."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str, int], Footnote] = {}

    def __iter__(self) -> Iterator[Footnote]:
        return iter(self._notes.values())

    def cite(self, citation: Citation) -> list[Footnote]:
        """The footnotes of a citation's sources, with what the citation adds to them."""
        (support,) = check_citations([citation])
        notes = [self._note(source) for source in citation.sources]
        for note in notes:
            (own,) = check_citations([replace(citation, sources=(note.source,))])
            if own.passage and own.passage not in note.quotes:
                note.quotes.append(own.passage)
            if support.score < LEAST_SUPPORT:
                note.doubts.append(f'its words hardly support "{_clipped(citation.text)}" ({support.score:.2f} of 1)')
        return notes

    def _note(self, source: Source) -> Footnote:
        key = (source.type, source.id, source.index)
        return self._notes.setdefault(key, Footnote(len(self._notes) + 1, source))


class Screen(Protocol):
    """Where an answer is shown."""

    def write(self, piece: str) -> None:
        """Show a piece of the answer at once."""
        ...

    def mark(self, note: Footnote) -> None:
        """Show the mark of a footnote at this place in the text."""
        ...

    def remark(self, text: str) -> None:
        """Show a line that is not the answer: a plan, a call."""
        ...

    def sources(self, notes: Iterable[Footnote]) -> None:
        """Show the footnotes."""
        ...


class AnswerView:
    """Shows an answer as its events come, footnotes included.

    Attributes:
        notes: its footnotes.
        is_empty: nothing has been shown yet.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._plan = ""
        self._call = ""
        self.notes = Footnotes()
        self.has_text = False
        self.is_empty = True

    def take(self, event: Event) -> None:
        """Show what an event adds."""
        match event:
            case PlanDelta(text):
                self._plan += text
            case ToolCallStart(_, _, name):
                self._call = f"{name}("
            case ToolCallDelta(_, arguments):
                self._call += arguments
            case ToolCallEnd():
                self._end_plan()
                self._remark(f"{self._call})")
            case TextDelta(text):
                self._end_plan()
                self._screen.write(text)
                self.has_text, self.is_empty = True, False
            case CitationEvent(_, citation):
                for note in self.notes.cite(citation):
                    self._screen.mark(note)
            case MessageEnd():
                self._end_plan()

    def close(self) -> None:
        """Show the footnotes, if there are any."""
        notes = list(self.notes)
        if notes:
            self._screen.sources(notes)

    def _end_plan(self) -> None:
        if self._plan:
            self._remark(self._plan)
        self._plan = ""

    def _remark(self, text: str) -> None:
        self._screen.remark(text)
        self.is_empty = False


def _shown(value: object) -> str:
    return value if isinstance(value, str) else compact(value)


def _clipped(text: str) -> str:
    """On one line, and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…"
