"""Stands in for a model: texts that were written beforehand, cut into pieces, and notes of what was asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from quarterdeck.chat import ChatResponse, Prompt, SamplingParams, TokenLogprob, Usage
from quarterdeck.chat.answers.response import FinishReason
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.messages import (
    Citation,
    CitationEvent,
    Event,
    MessageEnd,
    PlanDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)


@dataclass
class Asked:
    """One call of `generate`."""

    prompt: Prompt
    grammar: Grammar | None
    sampling_params: SamplingParams | None


class Scripted:
    """Gives its texts one after the other; whoever asks once more than there are fails.

    Args:
        texts: the model's; a text or the result of a function of the prompt.
        cut: makes pieces of a text.
    """

    def __init__(self, *texts: str | Callable[[Prompt], str], cut: Callable[[str], Iterable[str]] | None = None):
        self._texts = list(texts)
        self._cut = cut or (lambda text: [text])
        self.asked: list[Asked] = []
        self.given: list[str] = []

    def __call__(
        self, prompt: Prompt, *, grammar: Grammar | None = None, sampling_params: SamplingParams | None = None
    ) -> Iterator[str]:
        assert self._texts, "the model was asked once too often"
        text = self._texts.pop(0)
        self.asked.append(Asked(prompt, grammar, sampling_params))
        return self._pieces(text if isinstance(text, str) else text(prompt))

    def _pieces(self, text: str) -> Iterator[str]:
        for piece in self._cut(text):
            self.given.append(piece)
            yield piece


@dataclass
class Stream:
    """Text that knows how it came about, as a model's does."""

    pieces: list[str]
    finish_reason: FinishReason | None = "COMPLETE"
    usage: Usage = field(default_factory=lambda: Usage(10, 5, 3))
    logprobs: tuple[TokenLogprob, ...] | None = None
    calls: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


def streaming(*streams: Stream) -> Callable[..., Stream]:
    """A `generate` that gives these."""
    waiting = list(streams)

    def generate(prompt: Prompt, **options: Any) -> Stream:
        return waiting.pop(0)

    return generate


def cut_at_random(seed: int) -> Callable[[str], list[str]]:
    """Cuts a text into pieces of up to six characters, some of them empty."""

    def cut(text: str) -> list[str]:
        source, pieces = random.Random(seed), []
        while text:
            size = source.randrange(0, 7)
            pieces.append(text[:size])
            text = text[size:]
        return pieces

    return cut


def characters(text: str) -> list[str]:
    return list(text)


@dataclass
class Said:
    """What the events of a stream say together."""

    text: str = ""
    plan: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    citations: list[Citation] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Said:
    """Adds the deltas up, independently of the code under test, and checks their order."""
    said = Said()
    for event in events:
        assert not said.ends, "nothing follows the end"
        match event:
            case TextDelta(text):
                assert text
                said.text += text
            case PlanDelta(text):
                assert text
                said.plan += text
            case ToolCallStart(index, name_of_call, name):
                assert index == len(said.calls) == len(said.ended)
                said.calls.append(ToolCall(name_of_call, name, ""))
            case ToolCallDelta(index, arguments):
                call = said.calls[index]
                said.calls[index] = ToolCall(call.id, call.name, call.arguments + arguments)
            case ToolCallEnd(index):
                assert index == len(said.ended)
                said.ended.append(index)
            case CitationEvent(index, citation):
                assert index == len(said.citations)
                assert said.text[citation.start : citation.end] == citation.text
                said.citations.append(citation)
            case MessageEnd(response):
                said.ends.append(response)
    assert len(said.ends) == 1, "there is one end"
    return said


def check_agrees(said: Said, response: ChatResponse) -> None:
    """The deltas are what the response says."""
    assert said.text == response.text
    assert said.plan == response.tool_plan
    assert tuple(said.calls) == response.tool_calls
    assert tuple(said.citations) == response.citations
    assert len(said.ended) == len(said.calls)


def without_ids(response: ChatResponse) -> tuple[Any, ...]:
    """All of a response that does not change from one time to the next."""
    calls = tuple((call.name, call.arguments) for call in response.tool_calls)
    return response.text, response.citations, response.tool_plan, calls, response.finish_reason, response.prompt
