"""What a session talks to: the messages so far, and a way to get the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from quarterdeck.chat.agent import AgentResult
from quarterdeck.chat.answers.response import ChatResponse
from quarterdeck.chat.messages import Event, Message, MessageEnd, TextDelta
from quarterdeck.chat.prompts.conversation import read_messages
from quarterdeck.errors import InputError


class Events(Protocol):
    """Events of one answer, which can be left before their end."""

    def __iter__(self) -> Iterator[Event]:
        """The events."""
        ...

    def close(self) -> None:
        """No more are wanted."""
        ...


class Dialogue(ABC):
    """Messages back and forth with a model.

    Args:
        system: message that stands before all others.

    Attributes:
        messages: what was said, as plain values.
        settings: options of generation that can be changed, and their values.
    """

    def __init__(self, system: str | None) -> None:
        self._system = system
        self.messages: list[dict[str, Any]] = []
        self.clear()

    @abstractmethod
    def _stream(self) -> Events:
        """The answer to the messages, event by event."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that can be changed, and their values."""

    @abstractmethod
    def set(self, changes: Mapping[str, Any]) -> None:
        """Change settings.

        Raises:
            InputError: an unknown name, or a value that cannot be right; nothing is changed then.
        """

    @abstractmethod
    def status(self) -> dict[str, str]:
        """Facts about the model and the conversation, by name."""

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Let go of what it holds, at the end."""

    def clear(self) -> None:
        """Forget everything but the system message and the settings."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def load(self, messages: Sequence[Any]) -> str | None:
        """Go on from a saved conversation in place of this one; its system message counts, if it has one.

        Returns:
            The last question if it has no answer yet; it is not among the messages then.

        Raises:
            ChatError: a message is malformed.
        """
        read = read_messages(messages)
        open_question = read[-1].content if read[-1].role == "user" else None
        kept = read[:-1] if open_question is not None else read
        plain = [_plain(message) for message in kept]
        if self._system is not None and not (plain and plain[0]["role"] == "system"):
            plain.insert(0, {"role": "system", "content": self._system})
        self.clear()
        self.messages = plain
        return open_question

    def take_back(self) -> str:
        """Forget the last question and all that came after it; gives the question.

        Raises:
            InputError: nothing was asked yet.
        """
        for place in range(len(self.messages) - 1, -1, -1):
            if self.messages[place]["role"] == "user":
                question = str(self.messages[place]["content"])
                del self.messages[place:]
                return question
        raise InputError("nothing was asked yet")

    def ask(self, text: str) -> Generator[str]:
        """The answer to ``text``, piece by piece; see `events`."""
        with closing(self.events(text)) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    yield event.text

    def events(self, text: str) -> Generator[Event]:
        """The answer to ``text``, event by event.

        An answer that is cut short (the iterator is closed, or interrupted, or fails) stays in the conversation as far
        as its text came, so that one can ask to go on; if none has come at all, the question goes too.
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
                        added = _added(event.response, asked)
                    yield event
        finally:
            self.messages[asked:] = added
            if not added:
                self.messages.pop()


def check_text(text: str) -> None:
    """Refuse what cannot be UTF-8: bytes of the command line or of standard input that are not text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid UTF-8 at character {error.start}; save it as UTF-8") from error


def _added(response: ChatResponse | AgentResult, asked: int) -> list[dict[str, Any]]:
    """The messages that an answer adds after the first ``asked`` ones, as plain values."""
    added = (response.message,) if isinstance(response, ChatResponse) else response.messages[asked:]
    return [_plain(message) for message in added]


def _plain(message: Message) -> dict[str, Any]:
    """The message as plain values; an answer without text or calls has an empty text, so that it is one."""
    is_empty = message.role == "assistant" and not message.tool_calls
    return {"role": message.role, **({"content": ""} if is_empty else {}), **message.to_dict()}
