"""A model's text to text, plan, tool calls and citations: chunk by chunk, the same however it is cut.

    parser = Parser(prompt.format, prompt.sources)
    for chunk in generated:
        for event in parser.feed(chunk): ...     # TextDelta, PlanDelta, ToolCallStart, CitationEvent, ...
    for event in parser.close(): ...
    parser.parsed                                # what `parse` returns for the text as a whole

`SectionSplitter` cuts the text at its markers, and every section has a reader of its own, with `feed` and `close`.
Each reader's state is a function of the text so far, never of its chunks; that is why cuts make no difference.
Nothing raises: what a model got wrong is mended or left out, and noted in `Parsed.problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol, get_args

from quarterdeck.chat.messages import (
    Citation,
    CitationEvent,
    Event,
    PlanDelta,
    Source,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStart,
)
from quarterdeck.chat.parsing.citations import CitedText, Report, numbers_in, resolver
from quarterdeck.chat.parsing.sections import MARKERS, Section, SectionSplitter
from quarterdeck.chat.parsing.tool_calls import ActionReader
from quarterdeck.chat.parsing.trimming import Trimmer
from quarterdeck.chat.template import CitationMode, Format
from quarterdeck.errors import ChatError


@dataclass(frozen=True)
class Parsed:
    """What a model's text says.

    ``relevant_documents`` and ``cited_documents`` are the numbers that the text lists, None where it has no such list.
    ``problems`` says, in the order of the text, what had to be mended or left out; it does not count in comparisons.
    """

    text: str = ""
    tool_plan: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[Citation, ...] = ()
    relevant_documents: tuple[int, ...] | None = None
    cited_documents: tuple[int, ...] | None = None
    problems: tuple[str, ...] = field(default=(), compare=False)


class Reader(Protocol):
    """Reads the body of one section."""

    def feed(self, text: str) -> list[Event]:
        """The events that more of the body makes certain."""

    def close(self) -> list[Event]:
        """The rest, at the end of the section."""


class Parser:
    """Text to events, incrementally.

    Args:
        format: of the prompt that was answered (`Prompt.format`); says which markers count.
        sources: of the prompt (`Prompt.sources`); a citation of anything else is dropped. None accepts any number.
        citation_mode: of the prompt. With ``off`` there are no citations, and the first answer is the text.

    Raises:
        ChatError: the format or the mode is none of those that exist.
    """

    def __init__(
        self,
        format: Format = "rag",
        sources: Sequence[Source] | None = None,
        citation_mode: CitationMode = "accurate",
    ) -> None:
        if format not in MARKERS:
            raise ChatError(f"the format of a prompt is one of {', '.join(MARKERS)}, not {format!r}")
        if citation_mode not in get_args(CitationMode):
            raise ChatError(f"the citation mode is one of {', '.join(get_args(CitationMode))}, not {citation_mode!r}")
        self._splitter = SectionSplitter(MARKERS[format])
        self._has_markup = format in ("rag", "multi_step")
        self._resolve = None if citation_mode == "off" else resolver(sources)
        self._section: Section | None = None
        self._reader: Reader = Dropped()
        self._has_plan = False
        self._numbers: dict[Section, Numbers] = {}
        self._collected = Collector()
        self._problems: list[str] = []
        self._closed = False

    def feed(self, chunk: str) -> list[Event]:
        """What the next chunk makes certain, as few events as possible.

        Raises:
            ChatError: the parser is closed.
        """
        if self._closed:
            raise ChatError("the parser is closed; start a new one for another text")
        return self._collect([event for item in self._splitter.feed(chunk) for event in self._read(item)])

    def close(self) -> list[Event]:
        """What was withheld, at the end of the text; the second time nothing."""
        if self._closed:
            return []
        self._closed = True
        events = [event for item in self._splitter.close() for event in self._read(item)]
        return self._collect(events + self._reader.close())

    @property
    def is_complete(self) -> bool:
        """The list of tool calls has ended; nothing that follows counts, so the model may be stopped."""
        return isinstance(self._reader, ActionReader) and self._reader.is_complete

    @property
    def parsed(self) -> Parsed:
        """What the text says as far as it has arrived; the whole after `close`."""
        numbers = {section: tuple(reader.numbers) for section, reader in self._numbers.items()}
        return replace(
            self._collected.parsed,
            relevant_documents=numbers.get(Section.RELEVANT_DOCUMENTS),
            cited_documents=numbers.get(Section.CITED_DOCUMENTS),
            problems=tuple(self._problems),
        )

    def _read(self, item: Section | str) -> list[Event]:
        if isinstance(item, str):
            events = self._reader.feed(item)
            self._has_plan = self._has_plan or any(isinstance(event, PlanDelta) for event in events)
            return events
        events = [] if isinstance(self._reader, HeldText) else self._reader.close()
        self._reader = self._reader_of(item, after=self._section)
        self._section = item
        return events

    def _reader_of(self, section: Section, after: Section | None) -> Reader:
        report: Report = self._problems.append
        if section is Section.ACTION:
            return ActionReader(report)
        if section in (Section.PLAN, Section.REFLECTION):
            return PlainText(PlanDelta, before="\n" if self._has_plan else "")
        if section in (Section.RELEVANT_DOCUMENTS, Section.CITED_DOCUMENTS):
            return self._numbers.setdefault(section, Numbers())
        if section is Section.UNMARKED and not self._has_markup:
            return PlainText(TextDelta)
        if section is Section.ANSWER and self._resolve is not None:
            return HeldText(CitedText(None, report))
        if after is Section.ANSWER and self._resolve is None:
            return Dropped()
        return CitedText(self._resolve, report)

    def _collect(self, events: list[Event]) -> list[Event]:
        events = join_deltas(events)
        for event in events:
            self._collected.add(event)
        return events


def parse(
    text: str,
    format: Format = "rag",
    sources: Sequence[Source] | None = None,
    citation_mode: CitationMode = "accurate",
) -> Parsed:
    """What a model's whole text says; for the arguments see `Parser`."""
    parser = Parser(format, sources, citation_mode)
    parser.feed(text)
    parser.close()
    return parser.parsed


class PlainText:
    """Text without markup, trimmed.

    Args:
        delta: the event that carries it.
        before: goes before it, if there is any.
    """

    def __init__(self, delta: type[TextDelta] | type[PlanDelta], before: str = "") -> None:
        self._delta = delta
        self._before = before
        self._trimmer = Trimmer()

    def feed(self, text: str) -> list[Event]:
        """The text, but for white space that may be the last."""
        certain = self._trimmer.feed(text)
        if not certain:
            return []
        before, self._before = self._before, ""
        return [self._delta(before + certain)]

    def close(self) -> list[Event]:
        """Nothing."""
        return []


class HeldText:
    """Holds back what another reader makes of the text until it is closed."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._events: list[Event] = []

    def feed(self, text: str) -> list[Event]:
        """Nothing yet."""
        self._events += self._reader.feed(text)
        return []

    def close(self) -> list[Event]:
        """Everything."""
        return self._events + self._reader.close()


class Numbers:
    """The integers on the rest of the marker's line. Fed and closed once per section of its kind."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._line: list[str] = []
        self._on_line = True

    def feed(self, text: str) -> list[Event]:
        """No events."""
        if self._on_line:
            line, newline, _ = text.partition("\n")
            self._line.append(line)
            self._on_line = not newline
        return []

    def close(self) -> list[Event]:
        """No events."""
        self.numbers += numbers_in("".join(self._line))
        self._line, self._on_line = [], True
        return []


class Dropped:
    """Takes what nobody asked for."""

    def feed(self, text: str) -> list[Event]:
        """No events."""
        return []

    def close(self) -> list[Event]:
        """No events."""
        return []


class Collector:
    """Adds events up to what they say together."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._plan: list[str] = []
        self._calls: list[tuple[ToolCallStart, list[str]]] = []
        self._citations: list[Citation] = []

    def add(self, event: Event) -> None:
        """One more event; `ToolCallEnd` and `MessageEnd` add nothing."""
        match event:
            case TextDelta(text):
                self._text.append(text)
            case PlanDelta(text):
                self._plan.append(text)
            case ToolCallStart():
                self._calls.append((event, []))
            case ToolCallDelta(index, arguments):
                self._calls[index][1].append(arguments)
            case CitationEvent():
                self._citations.append(event.citation)

    @property
    def parsed(self) -> Parsed:
        """What the events so far say."""
        calls = tuple(ToolCall(start.id, start.name, "".join(parts)) for start, parts in self._calls)
        return Parsed("".join(self._text), "".join(self._plan), calls, tuple(self._citations))


def join_deltas(events: Sequence[Event]) -> list[Event]:
    """The same events, with neighbouring deltas of one kind (and of one call) joined."""
    return [event for _, neighbours in groupby(events, key=_joins) for event in _joined(list(neighbours))]


def _joins(event: Event) -> tuple[str, int]:
    return event.type, event.index if isinstance(event, ToolCallDelta) else -1


def _joined(neighbours: list[Event]) -> list[Event]:
    match neighbours[0]:
        case TextDelta():
            return [TextDelta("".join(event.text for event in neighbours if isinstance(event, TextDelta)))]
        case PlanDelta():
            return [PlanDelta("".join(event.text for event in neighbours if isinstance(event, PlanDelta)))]
        case ToolCallDelta(index):
            parts = (event.arguments for event in neighbours if isinstance(event, ToolCallDelta))
            return [ToolCallDelta(index, "".join(parts))]
    return neighbours
