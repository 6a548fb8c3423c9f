"""What a conversation is made of: messages, documents, tools, calls, citations, and the events of a streamed answer.

All are frozen and compared by value. Input is liberal in one place each, the `of` methods, which take a value or a
plain dictionary in Cohere's (v1, v2) or OpenAI's spelling; everything behind them works on the values alone.

    Message.of({"role": "Chatbot", "message": "Ahoy"})       # Message(role="assistant", content="Ahoy")
    Document.of({"id": "d1", "title": "Knots", "text": "…"})  # Document({"title": "Knots", "text": "…"}, id="d1")
    Tool.of(search)                                           # of a typed Python function

Offsets count code points; ends are exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from quarterdeck.chat.json_text import check_writable, kind, parse_json, shown
from quarterdeck.chat.values import Citation, Document, Source, Tool, ToolCall, Usage
from quarterdeck.errors import ChatError

__all__ = [
    "Citation",
    "CitationEvent",
    "Document",
    "Event",
    "Message",
    "MessageEnd",
    "PlanDelta",
    "Role",
    "Source",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "Usage",
]

Role = Literal["system", "user", "assistant", "tool"]

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
}

_KNOWN_KEYS = frozenset("role content message tool_plan tool_calls tool_call_id tool_results citations".split())

_OWNED: Mapping[Role, tuple[str, ...]] = {
    "assistant": ("tool_plan", "tool_calls", "citations"),
    "tool": ("tool_call_id", "documents", "tool_results"),
}
"""Fields that only messages of one role have."""

_WITHOUT_EFFECT = frozenset(
    "name refusal annotations audio id message_id response_id generation_id conversation_id type".split()
)
"""Keys that answers of these APIs carry, and that say nothing to the model."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks.
        content: what is said. That of a ``tool`` message becomes its ``documents``.
        tool_plan: what the assistant intends, before it calls.
        tool_calls: what it calls.
        tool_call_id: the call that a ``tool`` message answers.
        citations: what the assistant's content rests on.
        documents: the results that a ``tool`` message carries.
    """

    role: Role
    content: str = ""
    tool_plan: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    citations: tuple[Citation, ...] = ()
    documents: tuple[Document, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in _ROLES.values():
            raise ChatError(f"a message has one of the roles system, user, assistant and tool, not {self.role!r}")
        for name in ("content", "tool_plan", *(() if self.tool_call_id is None else ("tool_call_id",))):
            _text(vars(self), name)
        for name, parts in (("tool_calls", ToolCall), ("citations", Citation), ("documents", Document)):
            object.__setattr__(self, name, _all_of(parts, name, getattr(self, name)))
        _check_owners(vars(self), self.role)
        if self.role == "tool" and self.content:
            object.__setattr__(self, "documents", (*self.documents, *_documents_of_text(self.content)))
            object.__setattr__(self, "content", "")

    @classmethod
    def of(cls, given: Any) -> Message:
        """A message of a `Message`, or of a dictionary in Cohere's v2 or v1 or in OpenAI's shape.

        Raises:
            ChatError: it is none of these; the message names the item that is wrong.
        """
        if isinstance(given, Message):
            return given
        if not isinstance(given, Mapping):
            raise ChatError(f"a message is a dictionary with a role and a content, not {kind(given)}: {shown(given)}")
        fields = {key: value for key, value in given.items() if value is not None}
        role = _read_role(given)
        _check_keys(fields, role)
        calls = tuple(ToolCall.of(call) for call in _items(fields, "tool_calls"))
        plan = _text(fields, "tool_plan")
        if role == "tool":
            return _read_tool_message(fields)
        content = _read_content(given, role)
        citations = tuple(Citation.of(citation) for citation in _items(fields, "citations"))
        return cls(role, content, plan, calls, None, citations)

    def to_dict(self) -> dict[str, Any]:
        """The message in Cohere's v2 shape, without absent keys."""
        if self.role == "tool":
            parts = [{"type": "document", "document": document.to_dict()} for document in self.documents]
            fields: dict[str, Any] = {"tool_call_id": self.tool_call_id, "content": parts or None}
        elif self.role == "assistant":
            fields = {
                "tool_plan": self.tool_plan or None,
                "tool_calls": [call.to_dict() for call in self.tool_calls] or None,
                "content": self.content or None,
                "citations": [citation.to_dict() for citation in self.citations] or None,
            }
        else:
            fields = {"content": self.content}
        return {"role": self.role, **{key: value for key, value in fields.items() if value is not None}}


def _read_role(given: Mapping[str, Any]) -> Role:
    role = given.get("role")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise ChatError(f"a message has one of the roles {', '.join(_ROLES)}, not {role!r}: {shown(dict(given))}")
    return _ROLES[role.lower()]


def _check_keys(fields: Mapping[str, Any], role: Role) -> None:
    unknown = sorted(str(key) for key in fields if key not in _KNOWN_KEYS | _WITHOUT_EFFECT)
    if unknown:
        raise ChatError(f"a message has no {', '.join(unknown)}; it has {', '.join(sorted(_KNOWN_KEYS))}")
    _check_owners(fields, role)


def _check_owners(fields: Mapping[str, Any], role: Role) -> None:
    for owner, keys in _OWNED.items():
        misplaced = [key for key in keys if fields.get(key) and role != owner]
        if misplaced:
            raise ChatError(f"{', '.join(misplaced)} belongs to messages of the role {owner}, not {role}")


def _items(fields: Mapping[str, Any], key: str) -> Sequence[Any]:
    items = fields.get(key, ())
    if not isinstance(items, (list, tuple)):
        raise ChatError(f"{key} is a list, not {kind(items)}: {shown(items)}")
    return items


def _all_of(kind_of: type, name: str, given: Any) -> tuple[Any, ...]:
    """The values, which are all of one kind."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ChatError(f"{name} of a message is a tuple, not {kind(given)}: {shown(given)}")
    values = tuple(given)
    for value in values:
        if not isinstance(value, kind_of):
            raise ChatError(f"{name} of a message holds {kind_of.__name__}s, not {kind(value)}: see Message.of")
    return values


def _text(fields: Mapping[str, Any], key: str) -> str:
    text = fields.get(key, "")
    if not isinstance(text, str):
        raise ChatError(f"{key} is a string, not {kind(text)}: {shown(text)}")
    return text


def _read_content(given: Mapping[str, Any], role: Role) -> str:
    key = "message" if "message" in given and "content" not in given else "content"
    if key not in given and role != "assistant":
        raise ChatError(f"a message of the role {role} has a content: {shown(dict(given))}")
    content = given.get(key)
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in _parts(content):
        if part["type"] != "text":
            raise ChatError(f"documents belong into tool messages or into 'documents', not into a message of {role}")
        texts.append(_text(part, "text"))
    return "".join(texts)


def _parts(content: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(content, (list, tuple)):
        raise ChatError(f"the content of a message is a string or a list of parts, not {kind(content)}")
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "document"):
            raise ChatError(f"the parts of a content have the type text or document: {shown(part)}")
        if part["type"] not in part:
            raise ChatError(f"a part of the type {part['type']} has a {part['type']}: {shown(part)}")
        yield part


def _read_tool_message(fields: Mapping[str, Any]) -> Message:
    if "tool_results" in fields:
        return _read_results(_items(fields, "tool_results"))
    name = fields.get("tool_call_id")
    if name is not None and not isinstance(name, str):
        raise ChatError(f"tool_call_id is a string, not {kind(name)}: {shown(name)}")
    content = fields.get("content", fields.get("message", ()))
    parts: Iterable[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else _parts(content)
    documents: list[Document] = []
    for part in parts:
        if part["type"] == "text":
            documents += _documents_of_text(_text(part, "text"))
        else:
            documents.append(Document.of(part["document"]))
    return Message("tool", tool_call_id=name, documents=tuple(documents))


def _read_results(results: Sequence[Any]) -> Message:
    """A message of Cohere's v1 results: they may answer several calls, whose ids then stand in the documents' ids."""
    calls: list[ToolCall] = []
    documents: list[Document] = []
    for result in results:
        if not isinstance(result, Mapping) or set(result) != {"call", "outputs"}:
            raise ChatError(f"a tool result has a call and outputs: {shown(result)}")
        call = ToolCall.of(result["call"])
        calls.append(call)
        outputs = [Document.of({"data": output}) for output in _items(result, "outputs")]
        documents += [Document(output.data, f"{call.id}:{k}") for k, output in enumerate(outputs)]
    return Message("tool", tool_call_id=calls[0].id if calls else None, documents=tuple(documents))


def _documents_of_text(text: str) -> list[Document]:
    try:
        value = parse_json(text)
    except ValueError:
        return [Document({"output": text})]
    items = [value] if isinstance(value, dict) else value
    if isinstance(items, list) and all(isinstance(item, dict) for item in items) and check_writable(items) is None:
        return [Document(item) for item in items]
    return [Document({"output": text})]


@dataclass(frozen=True)
class TextDelta:
    """More of the answer."""

    text: str
    type: ClassVar[str] = "text"


@dataclass(frozen=True)
class PlanDelta:
    """More of the plan or reflection."""

    text: str
    type: ClassVar[str] = "plan"


@dataclass(frozen=True)
class ToolCallStart:
    """A call begins."""

    index: int
    id: str
    name: str
    type: ClassVar[str] = "tool-call-start"


@dataclass(frozen=True)
class ToolCallDelta:
    """More of a call's arguments."""

    index: int
    arguments: str
    type: ClassVar[str] = "tool-call-delta"


@dataclass(frozen=True)
class ToolCallEnd:
    """A call is complete, or will never be."""

    index: int
    type: ClassVar[str] = "tool-call-end"


@dataclass(frozen=True)
class CitationEvent:
    """A citation, after the text that it covers."""

    index: int
    citation: Citation
    type: ClassVar[str] = "citation"


@dataclass(frozen=True)
class MessageEnd:
    """The end; ``response`` is what the call without streaming returns."""

    response: Any
    type: ClassVar[str] = "end"


Event = TextDelta | PlanDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | CitationEvent | MessageEnd
