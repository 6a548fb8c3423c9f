r"""Splits a model's text at its markers (`Plan:`, `Action:`, `Grounded answer:` ...) while it arrives.

    splitter = SectionSplitter(MARKERS["rag"])
    list(splitter.feed("Answer: a\nGroun"))         # [Section.ANSWER, " a\n"]
    list(splitter.feed("ded answer: b"))            # [Section.GROUNDED, " b"]

A marker counts at the start of a line, or at the start of the output after white space, and only where the section
that it would end lets it. A text that begins with no marker is one section, `Section.UNMARKED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum


class Section(Enum):
    """A part of the output; the value is the marker before it."""

    RELEVANT_DOCUMENTS = "Relevant Documents:"
    CITED_DOCUMENTS = "Cited Documents:"
    ANSWER = "Answer:"
    GROUNDED_ANSWER = "Grounded answer:"
    PLAN = "Plan:"
    REFLECTION = "Reflection:"
    ACTION = "Action:"
    UNMARKED = ""


_GROUNDED = (Section.RELEVANT_DOCUMENTS, Section.CITED_DOCUMENTS, Section.ANSWER, Section.GROUNDED_ANSWER)

MARKERS: Mapping[str, tuple[Section, ...]] = {
    "default": (),
    "rag": _GROUNDED,
    "tool_use": (Section.ACTION,),
    "multi_step": (*_GROUNDED, Section.PLAN, Section.REFLECTION, Section.ACTION),
}
"""The markers that each format of a prompt asks for."""

_LAST = frozenset({Section.GROUNDED_ANSWER, Section.ACTION, Section.UNMARKED})
"""Nothing ends these but the end of the output."""


class SectionSplitter:
    """Gives a `Section` where one begins, and a `str` for a piece of its body.

    Withholds white space before the first section, and at the start of a line what may still become a marker.

    Args:
        markers: those that count. None is the beginning of another.
    """

    def __init__(self, markers: tuple[Section, ...]) -> None:
        self._markers = markers
        self._allowed = markers
        self._started = False
        self._at_line_start = True
        self._withheld = ""

    def feed(self, text: str) -> Iterator[Section | str]:
        """Sections and pieces of their bodies, as far as they are certain."""
        text, self._withheld = self._withheld + text, ""
        position = 0 if self._started else len(text) - len(text.lstrip())
        while position < len(text):
            if self._at_line_start and self._allowed and self._may_become_marker(text, position):
                self._withheld = text[position:]
                return
            section = self._begins(text, position) if self._at_line_start else None
            if section is not None:
                yield section
                position += len(section.value)
            end = self._end_of_line(text, position)
            if end > position:
                yield text[position:end]
            position = end

    def close(self) -> Iterator[Section | str]:
        """The rest: what did not become a marker after all."""
        text, self._withheld = self._withheld, ""
        if text and not self._started:
            yield Section.UNMARKED
        if text:
            yield text

    def _may_become_marker(self, text: str, position: int) -> bool:
        if len(text) - position >= len(Section.RELEVANT_DOCUMENTS.value):
            return False
        rest = text[position:]
        return any(marker.value.startswith(rest) and marker.value != rest for marker in self._allowed)

    def _begins(self, text: str, position: int) -> Section | None:
        """The section that begins here, at the start of a line, if one does."""
        self._at_line_start = False
        section = next((marker for marker in self._allowed if text.startswith(marker.value, position)), None)
        if section is None and not self._started:
            section = Section.UNMARKED
        if section is not None:
            self._started = True
            self._allowed = self._after(section)
        return section

    def _after(self, section: Section) -> tuple[Section, ...]:
        if section in _LAST:
            return ()
        if section is Section.ANSWER:
            return tuple(marker for marker in self._markers if marker is Section.GROUNDED_ANSWER)
        return self._markers

    def _end_of_line(self, text: str, position: int) -> int:
        """Where the piece of body ends that starts here; everything is one piece where no marker can follow."""
        newline = text.find("\n", position) if self._allowed else -1
        self._at_line_start = newline >= 0
        return len(text) if newline < 0 else newline + 1
