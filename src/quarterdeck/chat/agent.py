"""An agent: the model calls tools, sees what they return, and goes on until it can answer.

    agent = Agent(LLM(), [search, open_page])
    result = agent.run("Which knot holds best?")
    result.text, result.citations              # cites what the tools returned
    print(result)                              # the trace

Every step is an answer of the model over the conversation so far, in which the results of all steps are numbered
documents. The agent itself only runs the calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from quarterdeck.chat.answers.answering import AnswerStream, Generate, stream_answer
from quarterdeck.chat.answers.response import ChatResponse, FinishReason, added
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.grammar import tool_calls_grammar
from quarterdeck.chat.json_text import compact, kind, shown
from quarterdeck.chat.messages import Citation, Document, Event, Message, MessageEnd, ToolCall, Usage
from quarterdeck.chat.prompts.conversation import read_messages, read_tools
from quarterdeck.chat.template import CitationMode
from quarterdeck.chat.tool_run import ToolBox
from quarterdeck.errors import ChatError, ContextLengthError

AgentFinishReason = Literal["COMPLETE", "MAX_STEPS", "MAX_TOKENS", "ERROR"]


@runtime_checkable
class ChatModel(Protocol):
    """A model that answers, such as an `LLM`."""

    def stream_chat(self, messages: Any, **options: Any) -> Iterator[Event]:
        """See `stream_answer`."""
        ...


@dataclass(frozen=True)
class Step:
    """One round: what the model intended, what it called, and for each call what came back."""

    plan: str
    calls: tuple[ToolCall, ...]
    results: tuple[tuple[Document, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """``plan`` and ``calls``, each with its ``results``."""
        calls = [
            {**call.to_dict(), "results": [document.to_dict() for document in documents]}
            for call, documents in zip(self.calls, self.results, strict=True)
        ]
        return {"plan": self.plan, "calls": calls}


@dataclass(frozen=True)
class AgentResult:
    """What an agent found. As a string it is its trace.

    Args:
        text: the answer.
        citations: what it rests on: results of tools.
        messages: the conversation with all that was added; the answer is the last. Valid input for another run.
        steps: the rounds with calls.
        finish_reason: ``COMPLETE``; ``MAX_STEPS``, the answer was asked for after the last round that was allowed;
            ``MAX_TOKENS``, it was cut short.
        usage: tokens that all of it took.
    """

    text: str
    citations: tuple[Citation, ...]
    messages: tuple[Message, ...]
    steps: tuple[Step, ...]
    finish_reason: AgentFinishReason
    usage: Usage = field(default_factory=lambda: Usage(0, 0))

    def __str__(self) -> str:
        return self.trace()

    def trace(self) -> str:
        """The rounds and the answer as text for people, with numbered results."""
        lines: list[str] = []
        number = self._first_number()
        for place, step in enumerate(self.steps, 1):
            lines += [f"Step {place}", *([f"  plan: {step.plan}"] if step.plan else [])]
            for call, documents in zip(step.calls, step.results, strict=True):
                lines.append(f"  call: {call.name}({call.arguments})")
                for document in documents:
                    lines.append(f"    [{number}] {shown(document.data, 300)}")
                    number += 1
        lines += [f"Answer ({self.finish_reason})", f"  {self.text}"]
        for citation in self.citations:
            sources = ", ".join(f"{source.id} [{source.index}]" for source in citation.sources)
            lines.append(f"  {citation.start}-{citation.end} {citation.text!r}: {sources}")
        usage = self.usage
        return "\n".join([*lines, f"Tokens: {usage.input_tokens} read, {usage.output_tokens} written"])

    def _first_number(self) -> int:
        """The number of the first result: those of the conversation that was given come before."""
        of_steps = sum(len(documents) for step in self.steps for documents in step.results)
        return sum(len(message.documents) for message in self.messages) - of_steps

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "text": self.text,
            "citations": [citation.to_dict() for citation in self.citations],
            "messages": [message.to_dict() for message in self.messages],
            "steps": [step.to_dict() for step in self.steps],
            "finish_reason": self.finish_reason,
            "usage": dict(vars(self.usage)),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file as JSON."""
        Path(path).write_text(
            json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n", encoding="utf-8"
        )


class Agent:
    """A model with tools that it may call again and again.

    Args:
        model: an `LLM`, or a `Generate`.
        tools: Python functions, or tools with a ``function``.
        max_steps: most rounds of calls; after them an answer is asked for, from what has been found.
        system: a message that stands before the conversation.
        citation_mode: as in `render`.
        strict_tools: decode calls under a grammar, so that they always fit their schemas.
        sampling_params: how tokens are chosen; None is greedy.

    Raises:
        ChatError: a tool cannot be run, or a value cannot be right.
    """

    def __init__(
        self,
        model: ChatModel | Generate,
        tools: Iterable[Any],
        *,
        max_steps: int = 8,
        system: str | None = None,
        citation_mode: CitationMode = "accurate",
        strict_tools: bool = True,
        sampling_params: SamplingParams | None = None,
    ) -> None:
        if not isinstance(model, ChatModel) and not callable(model):
            raise ChatError(f"the model of an agent is an LLM or a function that generates, not {kind(model)}")
        if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
            raise ChatError(f"max_steps is an integer from 1 on, not {shown(max_steps)}")
        self._model = model
        self._tools = ToolBox(read_tools(tools))
        if strict_tools:
            tool_calls_grammar(self._tools)  # refuses what it cannot enforce, now rather than in a run
        if citation_mode not in get_args(CitationMode):
            raise ChatError(f"citation_mode is one of {', '.join(get_args(CitationMode))}, not {shown(citation_mode)}")
        if not isinstance(strict_tools, bool):
            raise ChatError(f"strict_tools is True or False, not {shown(strict_tools)}")
        if sampling_params is not None and not isinstance(sampling_params, SamplingParams):
            raise ChatError(f"sampling_params is a SamplingParams, not {kind(sampling_params)}")
        self._max_steps = max_steps
        self._system = None if system is None else Message("system", system)
        self._citation_mode = citation_mode
        self._strict_tools = strict_tools
        self._sampling_params = sampling_params

    def run(self, question_or_messages: Any) -> AgentResult:
        """The answer to a question, or to a conversation.

        Results of tools that do not fit the model's context are replaced by an ``error`` that says so.

        Raises:
            ContextLengthError: the conversation does not fit the context even so.
            ChatError: the conversation cannot be right.
        """
        for event in self.stream(question_or_messages):
            if isinstance(event, MessageEnd) and isinstance(event.response, AgentResult):
                return event.response
        raise AssertionError("a run ends with its MessageEnd")

    def stream(self, question_or_messages: Any) -> Generator[Event]:
        """The events of all steps as they come (indices of calls start again with each), then one `MessageEnd`."""
        given = read_messages(question_or_messages)
        if self._system is not None and given[0] != self._system:
            given = (self._system, *given)
        return self._events(given)

    def _events(self, given: tuple[Message, ...]) -> Generator[Event]:
        run = _Run(given)
        while len(run.steps) < self._max_steps:
            options = {"tools": list(self._tools), "strict_tools": self._strict_tools}
            response = yield from self._fitting(run, options)
            if response.finish_reason != "TOOL_CALL":
                yield MessageEnd(run.result(response, _reason(response.finish_reason)))
                return
            results = tuple(self._tools.run(call) for call in response.tool_calls)
            run.add(response, results)
        response = yield from self._fitting(run, {})
        yield MessageEnd(run.result(response, "MAX_STEPS"))

    def _fitting(self, run: _Run, options: dict[str, Any]) -> Generator[Event, None, ChatResponse]:
        """The next answer. While the latest results do not fit the context, the longest of them makes room."""
        while True:
            try:
                return (yield from self._answer(run.messages, options))
            except ContextLengthError as error:
                if not run.shorten(str(error)):
                    raise

    def _answer(self, messages: list[Message], options: dict[str, Any]) -> Generator[Event, None, ChatResponse]:
        options = {**options, "citation_mode": self._citation_mode, "sampling_params": self._sampling_params}
        with closing(self._stream(messages, options)) as events:
            for event in events:
                if isinstance(event, MessageEnd):
                    response: ChatResponse = event.response
                    return response
                yield event
        raise AssertionError("an answer ends with its MessageEnd")

    def _stream(self, messages: list[Message], options: dict[str, Any]) -> Any:
        if isinstance(self._model, ChatModel):
            return self._model.stream_chat(messages, **options)
        stream: AnswerStream = stream_answer(self._model, messages, **options)
        return stream


def _reason(reason: FinishReason) -> AgentFinishReason:
    return reason if reason in ("MAX_TOKENS", "ERROR") else "COMPLETE"


class _Run:
    """The conversation of one run, as it grows."""

    def __init__(self, given: tuple[Message, ...]) -> None:
        self.messages = list(given)
        self.steps: list[Step] = []
        self._shortened: set[int] = set()
        self._usage = Usage(0, 0)

    def add(self, response: ChatResponse, results: tuple[tuple[Document, ...], ...]) -> None:
        """One round."""
        self.messages.append(response.message)
        self.messages += [
            Message("tool", tool_call_id=call.id, documents=documents)
            for call, documents in zip(response.tool_calls, results, strict=True)
        ]
        self.steps.append(Step(response.tool_plan, response.tool_calls, results))
        self._usage = added(self._usage, response.usage)

    def shorten(self, reason: str) -> bool:
        """Puts a note in the place of the longest results of the last round; false if that saves nothing."""
        if not self.steps:
            return False
        last, begin = self.steps[-1], len(self.messages) - len(self.steps[-1].calls)
        lengths = [
            0 if begin + place in self._shortened else sum(len(compact(one.data)) for one in documents)
            for place, documents in enumerate(last.results)
        ]
        place = max(range(len(lengths)), key=lengths.__getitem__)
        note = Document({"error": f"the result has {lengths[place]:,} characters, which is too long: {reason}"})
        if lengths[place] <= len(compact(note.data)):
            return False
        results = (*last.results[:place], (note,), *last.results[place + 1 :])
        self.steps[-1] = replace(last, results=results)
        self._shortened.add(begin + place)
        self.messages[begin + place] = replace(self.messages[begin + place], documents=(note,))
        return True

    def result(self, response: ChatResponse, reason: AgentFinishReason) -> AgentResult:
        """The end. Calls that were cut short are left out of the last message: nothing answers them."""
        return AgentResult(
            response.text,
            response.citations,
            (*self.messages, replace(response.message, tool_calls=())),
            tuple(self.steps),
            reason,
            added(self._usage, response.usage),
        )
