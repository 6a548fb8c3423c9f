"""Answers: all but the model.

    def generate(prompt, *, grammar=None, sampling_params=None):       # any source of raw text
        yield "Grounded answer: <co: 0>Emperor penguins</co: 0>."

    answer(generate, "Which are the tallest?", documents=[...])        # ChatResponse(text="Emperor penguins.", ...)

One generation is a `_Turn`: raw text, cut at the end of the turn, through the parser, to what the reader gets to see.
An answer is one turn, or two if the model first decides to answer directly. Streaming is the one way in which it is
done; `answer` takes the end of the stream.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from quarterdeck.chat.answers.request import Request, read_request
from quarterdeck.chat.answers.response import ChatResponse, FinishReason, TokenLogprob, added
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.answers.scrubbing import Scrubber
from quarterdeck.chat.answers.visible import VisibleEvents
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.json_text import kind
from quarterdeck.chat.messages import Event, MessageEnd, Usage
from quarterdeck.chat.parser import Collector, Parser
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.chat.template import Prompt
from quarterdeck.errors import ChatError

END_OF_TURN = ("<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>")
"""Control tokens after which nothing belongs to the answer. A `TextStream` can tell them from text that spells them and
has ended there; in other text the spelling counts."""


class Generate(Protocol):
    """A source of raw model text.

    What it returns may just be strings. If it is a `TextStream` besides, the answer has usage, log-probabilities and
    the model's own finish reason; without them usage is 0 and the reason ``COMPLETE``. Refusals belong into the call
    itself, so that they come before anything is generated. Stop strings are not its concern: those of
    ``sampling_params`` are looked for in the visible text, which it does not know.
    """

    def __call__(
        self, prompt: Prompt, *, grammar: Grammar | None = None, sampling_params: SamplingParams | None = None
    ) -> Iterable[str]:
        """The text that follows the prompt, piece by piece."""
        ...


@runtime_checkable
class TextStream(Protocol):
    """Raw text that knows how it came about. The attributes count once the text is over, or was stopped."""

    finish_reason: FinishReason | None
    """``COMPLETE`` or ``MAX_TOKENS``; None where it was stopped."""
    usage: Usage
    """The ids of the prompt, and every id that was generated."""
    logprobs: tuple[TokenLogprob, ...] | None
    """Of the tokens generated, if asked for."""

    def __iter__(self) -> Iterator[str]:
        """The pieces."""
        ...

    def stop(self) -> None:
        """No more is needed. What was computed may be kept for later."""
        ...

    def close(self) -> None:
        """The reader is gone: stop, and free everything."""
        ...


class AnswerStream(Iterator[Event]):
    """The events of an answer, to be iterated over; `close` ends the generation.

    One thread reads it. Any may close it, also while another waits for the next event.
    """

    def __init__(self, events: Generator[Event], close: Callable[[], None], closed: threading.Event) -> None:
        self._events = events
        self._close = close
        self._closed = closed

    def __next__(self) -> Event:
        """The next event."""
        if self._closed.is_set():
            raise StopIteration
        return next(self._events)

    def close(self) -> None:
        """Stop generating and free what it took; no more events. What is running stops at its next piece of text."""
        self._closed.set()
        _close(self._events)
        self._close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _close(one: Any) -> None:
    """Closes what can be closed; what runs in another thread right now is left to that thread."""
    close = getattr(one, "close", None)
    if not callable(close):
        return
    try:
        close()
    except ValueError as error:
        if "already executing" not in str(error):  # as Python says of generators
            raise


def answer(generate: Generate, messages: Any, **options: Any) -> ChatResponse:
    """What a model answers.

    Args:
        generate: the model.
        messages: a list of what `Message.of` takes, or one string of a user.
        options: ``documents``, ``tools``, ``citation_mode``, ``multi_step``, ``now`` as in `render`; ``tool_choice``
            (None: the model decides; ``"none"``, ``"required"``, or a tool's name), ``strict_tools``,
            ``strict_citations``, ``response_format`` (see docs/chat.md), ``sampling_params``.

    Raises:
        TypeError: an unknown option.
        ChatError: a request that cannot be right; before anything is generated.
    """
    for event in stream_answer(generate, messages, **options):
        if isinstance(event, MessageEnd) and isinstance(event.response, ChatResponse):
            return event.response
    raise AssertionError("an answer ends with its MessageEnd")


def stream_answer(generate: Generate, messages: Any, **options: Any) -> AnswerStream:
    """The events of an answer as they come, the last one a `MessageEnd` with what `answer` returns.

    For the arguments and errors see `answer`; refusals come from this call, not from the iteration.
    """
    closed = threading.Event()
    conduct = _Conduct(generate, read_request(messages, options), closed)
    return AnswerStream(conduct.events(), conduct.close, closed)


class _Turn:
    """One generation."""

    def __init__(self, generate: Generate, request: Request, closed: threading.Event) -> None:
        self._closed = closed
        self.prompt = request.prompt()
        grammar = request.grammar(self.prompt)
        self._parser = Parser(request.parsed_as(self.prompt), self.prompt.sources, request.citation_mode)
        self.visible = VisibleEvents(request.stops)
        self._stream = generate(self.prompt, grammar=grammar, sampling_params=request.sampling_params)
        if not isinstance(self._stream, Iterable):
            raise ChatError(f"generate returns an iterable of strings, not {kind(self._stream)}")
        ends = () if isinstance(self._stream, TextStream) else END_OF_TURN
        self._ender = Scrubber(control_tokens(), ends=ends)
        self._chunks = iter(self._stream)
        self._is_over = False

    def events(self) -> Iterator[Event]:
        try:
            for chunk in self._chunks:
                if self._closed.is_set():
                    return
                if not isinstance(chunk, str):
                    raise ChatError(f"generate yields strings, not {kind(chunk)}")
                yield from self.visible.feed(self._parser.feed(self._ender.feed(chunk)))
                self._is_over = self._says_all
                if self._is_over:
                    self._stop()
                    break
            rest = [*self._parser.feed(self._ender.close()), *self._parser.close()]
            yield from [*self.visible.feed(rest), *self.visible.close()]
        finally:
            self.close()

    @property
    def _says_all(self) -> bool:
        """Nothing that may follow counts."""
        return self.visible.stopped or self._ender.ended or self._parser.is_complete

    def _stop(self) -> None:
        stop = getattr(self._stream, "stop", None)
        if callable(stop):
            stop()

    def close(self) -> None:
        """Ends the generation, if it is not over."""
        for one in (self._chunks, self._stream):
            _close(one)

    @property
    def problems(self) -> tuple[str, ...]:
        return self._parser.parsed.problems

    @property
    def usage(self) -> Usage:
        usage = getattr(self._stream, "usage", None)
        return usage if isinstance(usage, Usage) else Usage(0, 0)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        logprobs: tuple[TokenLogprob, ...] | None = getattr(self._stream, "logprobs", None)
        return logprobs

    @property
    def finish_reason(self) -> FinishReason:
        """Why the text ended. A list of calls that was cut short is not one to act on."""
        if self.visible.stopped:
            return "STOP_SEQUENCE"
        reason: FinishReason | None = getattr(self._stream, "finish_reason", None)
        if reason == "ERROR" or (reason == "MAX_TOKENS" and not self._is_over):
            return reason
        if self.visible.calls:
            return "TOOL_CALL"
        return "STOP_SEQUENCE" if reason == "STOP_SEQUENCE" else "COMPLETE"


class _Conduct:
    """From a request to the events of its answer."""

    def __init__(self, generate: Generate, request: Request, closed: threading.Event) -> None:
        self._closed = closed
        self._generate = generate
        self._request = request
        self._usage = Usage(0, 0)
        self._problems: tuple[str, ...] = ()
        self._finish_reason: FinishReason = "COMPLETE"
        self.turn = _Turn(generate, request, closed)

    def close(self) -> None:
        """Ends the generation that is going on."""
        self.turn.close()

    def events(self) -> Generator[Event]:
        collected = Collector()
        for event in self._deltas():
            collected.add(event)
            yield event
        if self._closed.is_set():
            return
        parsed = collected.parsed
        turn = self.turn
        response = ChatResponse(
            id=str(uuid.uuid4()),
            text=parsed.text,
            citations=parsed.citations,
            tool_plan=parsed.tool_plan,
            tool_calls=parsed.tool_calls,
            finish_reason=self._finish_reason,
            usage=self._usage,
            logprobs=_of_text(turn.logprobs, parsed.text) if turn.prompt.format == "default" else turn.logprobs,
            prompt=turn.prompt,
            problems=(*self._problems, *turn.problems),
        )
        yield MessageEnd(response)

    def _deltas(self) -> Iterator[Event]:
        """The events of the first generation, and of a second one if the model wants to answer directly."""
        yield from self.turn.events()
        self._usage = self.turn.usage
        self._finish_reason = self.turn.finish_reason
        visible = self.turn.visible
        if self._closed.is_set() or not visible.answers_directly or visible.calls or self._finish_reason == "ERROR":
            return
        second = self._request.without_tools().limited(self._usage.output_tokens)
        if second is None:
            self._finish_reason = "MAX_TOKENS"
            return
        self._problems = self.turn.problems
        self.turn = _Turn(self._generate, second, self._closed)
        yield from self.turn.events()
        self._usage = added(self._usage, self.turn.usage)
        self._finish_reason = self.turn.finish_reason


def _of_text(logprobs: tuple[TokenLogprob, ...] | None, text: str) -> tuple[TokenLogprob, ...] | None:
    """Those of the tokens that a text begins with: a stop string, and what follows it, is not in it."""
    if logprobs is None:
        return None
    wanted = len(text.encode("utf-8", "replace"))
    kept, said = [], b""
    for one in logprobs:
        if len(said.lstrip()) >= wanted:
            break
        kept.append(one)
        said += one.bytes
    return tuple(kept)
