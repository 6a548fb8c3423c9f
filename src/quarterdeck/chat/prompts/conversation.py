"""A conversation as a request gives it, checked once: messages, documents, tools, and the results to number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quarterdeck.chat.json_text import kind
from quarterdeck.chat.messages import Document, Message, Source, Tool
from quarterdeck.errors import ChatError


def read_messages(given: Any) -> tuple[Message, ...]:
    """The messages of a conversation; a string is one user message.

    Raises:
        ChatError: there is none, one is malformed, or a tool's result answers no earlier call.
    """
    messages = tuple(
        _read(Message.of, item, f"messages[{number}]")
        for number, item in enumerate(
            [Message("user", given)] if isinstance(given, str) else _listed(given, "messages")
        )
    )
    if not messages:
        raise ChatError("a conversation has at least one message")
    calls: set[str] = set()
    for number, message in enumerate(messages):
        calls.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in calls:
            raise ChatError(
                f"messages[{number}]: tool_call_id {message.tool_call_id!r} is the id of no call of an earlier "
                f"assistant message; those are {', '.join(sorted(calls)) or 'none'}"
            )
    return messages


def read_documents(given: Any) -> list[Document]:
    """The documents of a request.

    Raises:
        ChatError: one is malformed.
    """
    return [_read(Document.of, item, f"documents[{number}]") for number, item in enumerate(_listed(given, "documents"))]


def read_tools(given: Any) -> list[Tool]:
    """The tools of a request.

    Raises:
        ChatError: one is malformed, or two have the same name.
    """
    tools = [_read(Tool.of, item, f"tools[{number}]") for number, item in enumerate(_listed(given, "tools"))]
    twice = [name for name, count in Counter(tool.name for tool in tools).items() if count > 1]
    if twice:
        raise ChatError(f"tools have names of their own, and {', '.join(twice)} occurs more than once")
    return tools


def _listed(given: Any, what: str) -> Iterable[Any]:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ChatError(f"{what} is a list, not {kind(given)}")
    return given


def _read(reader: Any, item: Any, where: str) -> Any:
    try:
        return reader(item)
    except ChatError as error:
        raise ChatError(f"{where}: {error}") from error


def document_sources(documents: Iterable[Document]) -> list[Source]:
    """Documents with their numbers; one without an id is ``doc:{number}``."""
    return [
        Source("document", document.id or f"doc:{number}", number, document.data)
        for number, document in enumerate(documents)
    ]


class Results:
    """The results that a conversation's tool messages carry, numbered in the order in which they are asked for."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.sources: list[Source] = []
        places: Counter[str] = Counter()
        self._ids: dict[int, list[str]] = {}
        for number, message in enumerate(messages):
            self._ids[number] = [_result_id(message, document, places) for document in message.documents]
        self._messages = messages

    def take(self, numbers: Iterable[int]) -> list[Source]:
        """The results of some messages; their numbers go on from those of the results taken before."""
        taken = [
            (name, document)
            for number in numbers
            for name, document in zip(self._ids[number], self._messages[number].documents, strict=True)
        ]
        begin = len(self.sources)
        found = [Source("tool", name, begin + place, one.data) for place, (name, one) in enumerate(taken)]
        self.sources += found
        return found


def _result_id(message: Message, document: Document, places: Counter[str]) -> str:
    call = message.tool_call_id or ""
    place = places[call]
    places[call] += 1
    return document.id or f"{call}:{place}"
