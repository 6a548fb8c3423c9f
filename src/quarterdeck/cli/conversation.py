"""A conversation with a model: its messages, its settings, and the keys and values of what the model has read."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from quarterdeck.chat.agent import Agent, AgentResult
from quarterdeck.chat.answers.answering import AnswerStream, stream_answer
from quarterdeck.chat.answers.response import ChatResponse
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.messages import Document, Event, Message, MessageEnd, TextDelta, Tool
from quarterdeck.chat.template import CitationMode, Prompt, render
from quarterdeck.cli.answering import Answerer, check_text, drawing
from quarterdeck.cli.shelf import Shelf
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.generation.text import ModelText

SETTABLE = (
    "max_new_tokens",
    "min_new_tokens",
    "max_time",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "stop_strings",
)
"""Options of generation that make sense from one answer to the next."""


@dataclass(frozen=True)
class Grounds:
    """What answers rest on: documents, or what tools return, or neither.

    Args:
        documents: None is no grounding.
        tools: those that the model may call, with their functions.
        citation_mode: as in `render`.
    """

    documents: Sequence[Document] | None = None
    tools: Sequence[Tool] = ()
    citation_mode: CitationMode = "accurate"


class Conversation:
    """Messages back and forth.

    Each answer is a new generation from the whole conversation. Of the ids of its prompt those that the model has read
    before, in the same places, are in a cache and are not read again.

    Args:
        answerer: the model.
        system: message that stands before all others.
        grounds: what answers rest on.
        reuse: whether to keep the cache from one answer to the next.
    """

    def __init__(
        self, answerer: Answerer, system: str | None = None, grounds: Grounds | None = None, *, reuse: bool = True
    ) -> None:
        self._answerer = answerer
        self._system = system
        self._grounds = grounds or Grounds()
        tools, documents = self._grounds.tools, self._grounds.documents
        mode = self._grounds.citation_mode
        self._agent = Agent(self._raw, tools, citation_mode=mode) if tools else None
        self._shelf = None if documents is None else Shelf(documents, answerer.count)
        self._prefix = PrefixCache(with_answers=True) if reuse else None
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system message and the settings."""
        self.messages: list[dict[str, Any]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        if self._prefix is not None:
            self._prefix.forget()

    def ask(self, text: str) -> Generator[str]:
        """The answer to ``text``, piece by piece; see `events`."""
        with closing(self.events(text)) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    yield event.text

    def events(self, text: str) -> Generator[Event]:
        """The answer to ``text``, event by event.

        An answer that is cut short (the iterator is closed, or interrupted) stays in the conversation as far as its
        text came, so that one can ask to go on; if none has come at all, the question goes too.
        """
        check_text(text)
        self.messages.append({"role": "user", "content": text})
        asked, said = len(self.messages), ""
        added: list[dict[str, Any]] = []
        try:
            with closing(self._stream()) as events:
                for event in events:
                    if isinstance(event, TextDelta):
                        said += event.text
                        added = [{"role": "assistant", "content": said}]
                    elif isinstance(event, MessageEnd):
                        added = _plain(event.response, asked)
                    yield event
        finally:
            self.messages[asked:] = added
            if not added:
                self.messages.pop()

    def _stream(self) -> Generator[Event] | AnswerStream:
        if self._agent is not None:
            return self._agent.stream(self.messages)
        mode = self._grounds.citation_mode
        return stream_answer(self._raw, self.messages, documents=self._documents(), citation_mode=mode)

    def _documents(self) -> list[Document] | None:
        """Those for the latest question, which may mean what the one before it was about."""
        if self._shelf is None:
            return None
        questions = [message["content"] for message in self.messages if message["role"] == "user"][-2:]

        def prompt(documents: Sequence[Document]) -> Prompt:
            return render(self.messages, documents=documents, citation_mode=self._grounds.citation_mode)

        return self._shelf.chosen("\n".join(questions), prompt, self._answerer.budget)

    def _raw(
        self, prompt: Prompt, *, grammar: Grammar | None = None, sampling_params: SamplingParams | None = None
    ) -> ModelText:
        return self._answerer.raw(prompt, grammar=grammar, sampling_params=sampling_params, prefix=self._prefix)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that can be changed, and their values."""
        return {name: getattr(self._answerer.settings, name) for name in SETTABLE}

    def set(self, changes: dict[str, Any]) -> None:
        """Change settings; a temperature decides by itself whether tokens are drawn.

        Raises:
            InputError: an unknown name, or a value that cannot be right; nothing is changed then.
        """
        for name in changes:
            if name not in SETTABLE:
                raise UnsupportedOptionError(f"{name!r} cannot be set here; there are {', '.join(SETTABLE)}")
        implied: dict[str, Any] = {}
        temperature = changes.get("temperature")
        if isinstance(temperature, int | float) and "do_sample" not in changes:
            if temperature == 0:
                implied = drawing(None)
                changes = {name: value for name, value in changes.items() if name != "temperature"}
            else:
                implied = {"do_sample": True}
        self._answerer.settings.update(**(implied | changes))


def _plain(response: ChatResponse | AgentResult, asked: int) -> list[dict[str, Any]]:
    """The messages that an answer adds after the first ``asked`` ones, as plain values."""
    added = (response.message,) if isinstance(response, ChatResponse) else response.messages[asked:]
    return [{**_empty(message), **message.to_dict()} for message in added]


def _empty(message: Message) -> dict[str, Any]:
    """What an answer without text or calls has, so that it is one."""
    return {"role": message.role, "content": ""} if message.role == "assistant" and not message.tool_calls else {}


def parse_settings(text: str) -> dict[str, Any]:
    """``temperature=0.5 stop_strings=["a b", "c"]`` as names and values; JSON where it is JSON, else text.

    Values that begin with a quote or a bracket go on to the one that closes it, spaces included; others to a space.

    Raises:
        InputError: something without ``=``, or a quote or bracket that is not closed.
    """
    settings = {}
    while text := text.lstrip():
        match = _NAME.match(text)
        if match is None:
            raise InputError(f"{text.split()[0]!r} is not of the form name=value")
        settings[match[1]], text = _value(text[match.end() :], match[1])
    return settings


_NAME = re.compile(r"([^\s=]+)=")
_SPELLED = {"True": True, "False": False, "None": None}


def _value(text: str, name: str) -> tuple[Any, str]:
    """The value that ``text`` begins with, and what follows it."""
    if text[:1] in ('"', "[", "{"):
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError as error:
            raise InputError(f'{name}={text} is not valid JSON: {error}; write, say, {name}=["a"]') from error
    elif text[:1] == "'":
        end = text.find("'", 1) + 1
        if not end:
            raise InputError(f"{name}={text} has no closing quote")
        value = text[1 : end - 1]
    else:
        word = text.split(maxsplit=1)[0] if text[:1].strip() else ""
        value, end = _plain_value(word), len(word)
    if text[end : end + 1].strip():
        raise InputError(f"{name}={text} goes on after its value; put a space before the next name")
    return value, text[end:]


def _plain_value(word: str) -> Any:
    if word in _SPELLED:
        return _SPELLED[word]
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word
