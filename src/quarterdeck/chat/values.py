"""What messages are made of: documents, tools, calls, citations. Frozen, compared by value; `of` reads plain input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quarterdeck.chat.json_text import check_writable, compact, kind, parse_json, parse_object, shown
from quarterdeck.chat.tools import functions, schema
from quarterdeck.errors import ChatError

_CALL_KEYS = frozenset("id type index function name arguments parameters".split())

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Document:
    """A text to ground an answer on: fields in the order in which the model sees them, and the caller's name for it."""

    data: dict[str, Any]
    id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.data, dict):
            raise ChatError(f"the data of a document is a dictionary, not {kind(self.data)}: see Document.of")
        if self.id is not None and not isinstance(self.id, str):
            raise ChatError(f"the id of a document is a string, not {kind(self.id)}: {shown(self.id)}")
        _check_fields(self.data)

    @classmethod
    def of(cls, given: Any) -> Document:
        """A document of a `Document`, a string, ``{"data", "id"?}``, or a flat dictionary of fields.

        Raises:
            ChatError: it is none of these, a key is no string, or a value has no JSON text.
        """
        if isinstance(given, Document):
            return given
        if isinstance(given, str):
            return cls({"text": given})
        if not isinstance(given, Mapping):
            raise ChatError(f"a document is a string or a dictionary, not {kind(given)}: {shown(given)}")
        fields = dict(given)
        name = fields.pop("id", None)
        if name is not None and (not isinstance(name, (str, int)) or isinstance(name, bool)):
            raise ChatError(f"the id of a document is a string, not {kind(name)}: {shown(given)}")
        if set(fields) == {"data"} and isinstance(fields["data"], (str, Mapping)):
            fields = _fields_of_data(fields["data"])
        return cls(fields, None if name is None else str(name))

    def to_dict(self) -> dict[str, Any]:
        """``{"data", "id"?}``."""
        return {"data": self.data} if self.id is None else {"data": self.data, "id": self.id}


def _fields_of_data(data: str | Mapping[Any, Any]) -> dict[Any, Any]:
    if not isinstance(data, str):
        return dict(data)
    value = parse_object(data)  # JSON text in place of an object is common in Cohere's own examples
    return {"text": data} if value is None else value


def _check_fields(fields: dict[Any, Any]) -> None:
    for key, value in fields.items():
        if not isinstance(key, str):
            raise ChatError(f"the fields of a document have strings for names, not {key!r}")
        reason = None if isinstance(value, str) else check_writable(value)
        if reason is not None:
            raise ChatError(f"the field {key!r} of a document cannot be written as JSON: {reason}")


@dataclass(frozen=True)
class Tool:
    """Something that the model can call: a name, what it does, and its arguments as a JSON Schema object.

    ``function``, if there is one, does it.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        schema.check_tool_name(self.name)
        schema.check_parameters(self.name, self.parameters)

    @classmethod
    def of(cls, given: Any) -> Tool:
        """A tool of a `Tool`, a dictionary in OpenAI's or Cohere's spelling, or a typed Python function.

        Raises:
            ChatError: it is none of these, or the function has something that a schema cannot describe.
        """
        if isinstance(given, Tool):
            return given
        if callable(given) and not isinstance(given, type):
            name, description, parameters = functions.describe(given)
            return cls(name, description, parameters, given)
        if isinstance(given, Mapping):
            return cls(*schema.read_tool(given))
        raise ChatError(f"a tool is a dictionary or a function, not {kind(given)}: {shown(given)}")

    def to_dict(self) -> dict[str, Any]:
        """``{"type": "function", "function": {"name", "description"?, "parameters"}}``."""
        named = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {key: value for key, value in named.items() if value != ""}}


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. ``arguments`` is JSON text, of an object if the model finished it."""

    id: str
    name: str
    arguments: str

    def __post_init__(self) -> None:
        for name in ("id", "name", "arguments"):
            if not isinstance(getattr(self, name), str):
                raise ChatError(f"the {name} of a tool call is a string, not {shown(getattr(self, name))}")

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments by name.

        Raises:
            ValueError: the text is incomplete, or stands for something else than an object.
        """
        value = parse_json(self.arguments)
        if not isinstance(value, dict):
            raise ValueError(f"the arguments of {self.name} are no JSON object: {shown(self.arguments)}")
        return value

    @classmethod
    def of(cls, given: Any) -> ToolCall:
        """A call of a `ToolCall`, ``{"id", "function": {"name", "arguments"}}`` or ``{"name", "parameters"}``.

        Without an id it gets one that follows from the name and the arguments, so that a result that repeats its call
        (as in Cohere's v1) finds it.

        Raises:
            ChatError: it is none of these.
        """
        if isinstance(given, ToolCall):
            return given
        if not isinstance(given, Mapping):
            raise ChatError(f"a tool call is a dictionary, not {kind(given)}: {shown(given)}")
        inner = given.get("function")
        fields = inner if isinstance(inner, Mapping) else given
        unknown = {*given, *fields} - _CALL_KEYS
        if unknown:
            raise ChatError(f"a tool call has no {', '.join(map(str, unknown))}: {shown(dict(given))}")
        name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters"))
        if not isinstance(name, str) or not name:
            raise ChatError(f"a tool call has a name: {shown(given)}")
        text = arguments if isinstance(arguments, str) else _arguments_text(name, arguments)
        name_of_call = given.get("id")
        if name_of_call is not None and not isinstance(name_of_call, str):
            raise ChatError(f"the id of a call of {name} is a string, not {kind(name_of_call)}")
        return cls(_id_of(name, text) if name_of_call is None else name_of_call, name, text)

    def to_dict(self) -> dict[str, Any]:
        """``{"id", "type": "function", "function": {"name", "arguments"}}``."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def _arguments_text(name: str, arguments: Any) -> str:
    if arguments is None:
        return "{}"
    if not isinstance(arguments, Mapping):
        raise ChatError(f"the arguments of a call of {name} are JSON text or an object, not {kind(arguments)}")
    reason = check_writable(dict(arguments))
    if reason is not None:
        raise ChatError(f"the arguments of a call of {name} cannot be written as JSON: {reason}")
    return compact(dict(arguments))


def _id_of(name: str, arguments: str) -> str:
    digest = hashlib.sha256(f"{name}\n{arguments}".encode("utf-8", "surrogatepass")).digest()
    return f"{name}_{''.join(_ID_ALPHABET[byte % len(_ID_ALPHABET)] for byte in digest[:12])}"


@dataclass(frozen=True)
class Source:
    """What a citation points to. ``index`` is the document's number in the prompt, -1 where that is not known."""

    type: Literal["document", "tool"]
    id: str
    index: int
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Cohere's v2 source; values of a tool's output that are not strings become JSON text."""
        if self.type == "document":
            return {"type": "document", "id": self.id, "document": {"id": self.id, **self.data}}
        shown = {key: value if isinstance(value, str) else compact(value) for key, value in self.data.items()}
        return {"type": "tool", "id": self.id, "tool_output": shown}

    @classmethod
    def of(cls, given: Any) -> Source:
        """A source of a `Source`, of Cohere's v2 shape, or of a document's id.

        Raises:
            ChatError: it is none of these.
        """
        if isinstance(given, Source):
            return given
        if isinstance(given, str):
            return cls("document", given, -1, {})
        if not isinstance(given, Mapping):
            raise ChatError(f"the source of a citation is a dictionary, not {kind(given)}: {shown(given)}")
        is_tool = given.get("type") == "tool"
        data = dict(given.get("tool_output" if is_tool else "document") or {})
        if not is_tool:
            data.pop("id", None)
        return cls("tool" if is_tool else "document", str(given.get("id") or ""), -1, data)


@dataclass(frozen=True)
class Citation:
    """``text[start:end]`` of an answer is what the sources say."""

    start: int
    end: int
    text: str
    sources: tuple[Source, ...]

    @classmethod
    def of(cls, given: Any) -> Citation:
        """A citation of a `Citation`, or of Cohere's v1 or v2 shape.

        Raises:
            ChatError: it is none of these.
        """
        if isinstance(given, Citation):
            return given
        if not isinstance(given, Mapping) or not all(isinstance(given.get(key), int) for key in ("start", "end")):
            raise ChatError(f"a citation is a dictionary with start, end, text and sources: {shown(given)}")
        sources = given.get("sources") or given.get("document_ids") or ()
        return cls(given["start"], given["end"], str(given.get("text") or ""), tuple(map(Source.of, sources)))

    def to_dict(self) -> dict[str, Any]:
        """Cohere's v2 citation."""
        span = {"start": self.start, "end": self.end, "text": self.text, "type": "TEXT_CONTENT", "content_index": 0}
        return {**span, "sources": [source.to_dict() for source in self.sources]}


@dataclass(frozen=True)
class Usage:
    """Tokens that an answer took: read, written, and how many of those read did not have to be computed."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
