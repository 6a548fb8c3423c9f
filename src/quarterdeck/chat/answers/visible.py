"""What of a parser's events the reader of an answer gets to see.

    text, citations    without control tokens and citation tags, up to the first stop string
    plan               without control tokens and citation tags
    calls              all but `directly_answer`, which the layer above resolves; no control tokens in arguments

The parser takes tags out of an answer, but what it takes out may put another one together (``<c<co: 0>o: 1>``), and in
formats without citations it leaves them in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from quarterdeck.chat.answers.scrubbing import Scrubber
from quarterdeck.chat.answers.stops import StopGate
from quarterdeck.chat.messages import (
    Citation,
    CitationEvent,
    Event,
    PlanDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from quarterdeck.chat.parser import join_deltas
from quarterdeck.chat.parsing.trimming import Trimmer
from quarterdeck.chat.prompts.parts import control_tokens

DIRECTLY_ANSWER = "directly_answer"


class VisibleEvents:
    """Filters events. What comes out is a function of the parser's text, whatever its pieces were.

    Attributes:
        answers_directly: there was a call of `directly_answer`.
        calls: how many others there were.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._text = VisibleText(stops)
        self._plan = _Plan()
        self._calls: dict[int, tuple[int, Scrubber]] = {}
        self.answers_directly = False
        self.calls = 0

    @property
    def stopped(self) -> bool:
        """A stop string was found; nothing more comes out."""
        return self._text.stopped

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """The events that are now certain."""
        return join_deltas([shown for event in events for shown in self._feed(event)])

    def close(self) -> list[Event]:
        """The rest."""
        return join_deltas([*self._plan.close(), *self._text.close()])

    def _feed(self, event: Event) -> list[Event]:
        match event:
            case PlanDelta(text):
                return self._plan.feed(text)
            case TextDelta(text):
                return [*self._plan.close(), *self._text.feed(text)]
            case CitationEvent(_, citation):
                return self._text.cite(citation)
            case ToolCallStart():
                return [*self._plan.close(), *self._start(event)]
            case ToolCallDelta(index, arguments) if index in self._calls:
                number, scrubber = self._calls[index]
                return _delta(number, scrubber.feed(arguments))
            case ToolCallEnd(index) if index in self._calls:
                number, scrubber = self._calls[index]
                return [*_delta(number, scrubber.close()), ToolCallEnd(number)]
        return []

    def _start(self, start: ToolCallStart) -> list[Event]:
        if start.name == DIRECTLY_ANSWER:
            self.answers_directly = True
            return []
        self._calls[start.index] = (self.calls, Scrubber(control_tokens()))
        self.calls += 1
        return [replace(start, index=self.calls - 1)]


def _delta(index: int, arguments: str) -> list[Event]:
    return [ToolCallDelta(index, arguments)] if arguments else []


class _Plan:
    """A plan, cleaned and trimmed."""

    def __init__(self) -> None:
        self._scrubber = Scrubber(control_tokens(), tags=True)
        self._trimmer = Trimmer()

    def feed(self, text: str) -> list[Event]:
        certain = self._trimmer.feed(self._scrubber.feed(text))
        return [PlanDelta(certain)] if certain else []

    def close(self) -> list[Event]:
        certain = self._trimmer.feed(self._scrubber.close())
        return [PlanDelta(certain)] if certain else []


class VisibleText:
    """An answer's text and citations, cleaned, trimmed, and ended at a stop string.

    A citation comes directly behind the text that it covers. One whose text is gone, or lies behind the end, does not
    come. Three counts of characters are in play: as fed, clean (nothing removed is left), and shown (trimmed).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._scrubber = Scrubber(control_tokens(), tags=True)
        self._trimmer = Trimmer()
        self._gate = StopGate(stops)
        self._clean = ""
        self._shown = 0
        self._unsettled: deque[Citation] = deque()  # as fed
        self._waiting: deque[Citation] = deque()  # as shown
        self._cited = 0

    @property
    def stopped(self) -> bool:
        """A stop string was found; nothing more comes out."""
        return self._gate.stopped

    def feed(self, text: str) -> list[Event]:
        """The events that are now certain."""
        return self._pass_on(self._scrubber.feed(text))

    def cite(self, citation: Citation) -> list[Event]:
        """The same for a citation, whose offsets count the characters that were fed."""
        self._unsettled.append(citation)
        return self._pass_on("")

    def close(self) -> list[Event]:
        """The rest."""
        events = self._pass_on(self._scrubber.close())
        return events + self._show(self._gate.close())

    def _pass_on(self, clean: str) -> list[Event]:
        self._clean += clean
        while self._unsettled and self._unsettled[0].end <= self._scrubber.settled:
            self._settle(self._unsettled.popleft())
        return self._show(self._gate.feed(self._trimmer.feed(clean)))

    def _settle(self, citation: Citation) -> None:
        start, end = (place - bisect_left(self._scrubber.removed, place) for place in (citation.start, citation.end))
        text = self._clean[start:end]
        leading = len(self._clean) - len(self._clean.lstrip())
        start += len(text) - len(text.lstrip()) - leading
        text = text.strip()
        if text:
            self._waiting.append(replace(citation, start=start, end=start + len(text), text=text))

    def _show(self, text: str) -> list[Event]:
        events: list[Event] = []
        while self._waiting and self._waiting[0].end <= self._shown + len(text):
            citation = self._waiting.popleft()
            covered = citation.end - self._shown
            events += [*self._text(text[:covered]), CitationEvent(self._cited, citation)]
            self._cited += 1
            text = text[covered:]
        return events + self._text(text)

    def _text(self, text: str) -> list[Event]:
        self._shown += len(text)
        return [TextDelta(text)] if text else []
