"""A request for an answer, checked once: what is asked, with what, and which texts the model may write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.answers.visible import DIRECTLY_ANSWER
from quarterdeck.chat.grammars.grammar import Grammar, cited_answer_grammar, json_grammar, tool_calls_grammar
from quarterdeck.chat.json_text import kind, shown
from quarterdeck.chat.messages import Document, Message, Tool
from quarterdeck.chat.prompts.conversation import read_documents, read_messages, read_tools
from quarterdeck.chat.template import CitationMode, Format, Prompt, render
from quarterdeck.errors import ChatError


@dataclass(frozen=True)
class Request:
    """What `answer` is asked; made by `read_request`.

    Args:
        messages: the conversation.
        documents: to ground the answer on; None is no grounding.
        tools: that may be called.
        citation_mode: as in `render`.
        multi_step: as in `render`.
        now: as in `render`.
        tool_choice: None, ``"none"``, ``"required"`` or the name of a tool.
        strict_tools: calls are decoded under a grammar, also where none is forced.
        strict_citations: a grounded answer is decoded under a grammar: it cites only documents that exist.
        response_format: what the text is to be, as in OpenAI's API.
        sampling_params: how tokens are chosen; None is greedy.
    """

    messages: tuple[Message, ...]
    documents: Sequence[Document] | None = None
    tools: Sequence[Tool] = ()
    citation_mode: CitationMode = "accurate"
    multi_step: bool = True
    now: datetime | None = None
    tool_choice: str | None = None
    strict_tools: bool = False
    strict_citations: bool = False
    response_format: Mapping[str, Any] | None = None
    sampling_params: SamplingParams | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.sampling_params is None else self.sampling_params.stop

    @property
    def is_json(self) -> bool:
        """The text is to be JSON."""
        return self.response_format is not None and self.response_format["type"] != "text"

    def prompt(self) -> Prompt:
        """What the model is asked."""
        return render(
            self.messages,
            documents=self.documents,
            tools=self.tools or None,
            citation_mode=self.citation_mode,
            multi_step=self.multi_step,
            now=self.now,
        )

    def grammar(self, prompt: Prompt) -> Grammar | None:
        """What the model may write; None is anything.

        Raises:
            ChatError: a schema cannot be enforced, or calls are forced, or citations, where the format has none.
        """
        if self.strict_citations:
            if prompt.format != "rag" or self.tool_choice is not None:
                raise ChatError("strict_citations needs documents, or results of tools and no tools to call")
            return cited_answer_grammar([source.index for source in prompt.sources], self.citation_mode)
        if self.is_json and self.response_format is not None:
            return json_grammar(_schema(self.response_format))
        if not self.tools or (self.tool_choice is None and not self.strict_tools):
            return None
        if prompt.format not in ("multi_step", "tool_use"):
            if self.tool_choice is None:
                return None
            raise ChatError("after the results of tools a call can only be forced with multi_step=True")
        return tool_calls_grammar(self.tools, tool_choice=self.tool_choice, format=prompt.format)

    def parsed_as(self, prompt: Prompt) -> Format:
        """The format of the model's text: JSON has no sections."""
        return "default" if self.is_json else prompt.format

    def without_tools(self) -> Request:
        """The same, to be answered in the model's own words."""
        return replace(self, tools=(), tool_choice=None)

    def limited(self, used: int) -> Request | None:
        """The same when that many of the tokens that it may take are used; None if there are none left."""
        params = self.sampling_params
        if params is None or params.max_tokens is None:
            return self
        left = params.max_tokens - used
        return replace(self, sampling_params=replace(params, max_tokens=left)) if left > 0 else None


_OPTIONS = tuple(field.name for field in fields(Request) if field.name != "messages")


def read_request(messages: Any, options: Mapping[str, Any]) -> Request:
    """The request that plain values stand for.

    Raises:
        TypeError: an option is unknown.
        ChatError: a value cannot be right, alone or together with others.
    """
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"there is no option {name!r}; the options of an answer are {', '.join(_OPTIONS)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("documents", "tools"):
        if name in given:
            given[name] = (read_documents if name == "documents" else read_tools)(given[name])
    request = Request(read_messages(messages), **given)
    _check_flags(request)
    if request.response_format is not None:
        _check_response_format(request)
    if request.tool_choice is None:
        return request
    choice = _read_choice(request.tool_choice, request.tools)
    return request.without_tools() if choice == "none" else replace(request, tool_choice=choice)


def _check_flags(request: Request) -> None:
    for name in ("multi_step", "strict_tools", "strict_citations"):
        if not isinstance(getattr(request, name), bool):
            raise ChatError(f"{name} is True or False, not {shown(getattr(request, name))}")
    params = request.sampling_params
    if params is not None and not isinstance(params, SamplingParams):
        raise ChatError(f"sampling_params is a SamplingParams, not {kind(params)}: {shown(params)}")


def _read_choice(choice: Any, tools: Sequence[Tool]) -> str:
    names = [tool.name for tool in tools if tool.name != DIRECTLY_ANSWER]
    known = ", ".join(["None", "'none'", "'required'", *map(repr, names)])
    if not isinstance(choice, str):
        raise ChatError(f"tool_choice is one of {known}, not {shown(choice)}")
    if not tools:
        raise ChatError(f"tool_choice={choice!r} needs tools, and there are none")
    if choice.lower() == "required" and not names:
        raise ChatError(f"tool_choice='required' needs a tool besides {DIRECTLY_ANSWER}")
    if choice.lower() in ("none", "required"):
        return choice.lower()
    if choice not in names:
        raise ChatError(f"tool_choice is one of {known}, not {choice!r}")
    return choice


def _check_response_format(request: Request) -> None:
    given = request.response_format
    kinds = ("text", "json_object", "json_schema")
    if not isinstance(given, Mapping) or given.get("type") not in kinds:
        raise ChatError(f"response_format is a dictionary with the type {' or '.join(kinds)}, not {shown(given)}")
    known = {"text": {"type"}, "json_object": {"type", "json_schema", "schema"}, "json_schema": {"type", "json_schema"}}
    unknown = sorted(str(key) for key in given if key not in known[given["type"]])
    if unknown:
        raise ChatError(f"response_format of the type {given['type']} has no {', '.join(unknown)}: {shown(given)}")
    _schema(given)
    if request.is_json and (request.tools or request.documents is not None):
        other = "tools" if request.tools else "documents"
        raise ChatError(f"response_format {given['type']} does not go together with {other}: give one of the two")


def _schema(given: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
    """The schema in a response format; None is any object."""
    if given["type"] == "text":
        return None
    schemas = [given[key] for key in ("json_schema", "schema") if given.get(key) is not None]
    if len(schemas) > 1:
        raise ChatError("response_format has json_schema and schema: give one of the two")
    if given["type"] == "json_object":
        return _checked_schema(schemas[0]) if schemas else None
    outer = schemas[0] if schemas else None
    if not isinstance(outer, Mapping) or "schema" not in outer or not isinstance(outer.get("name", ""), str):
        raise ChatError(
            f"response_format of the type json_schema has a json_schema with name and schema: {shown(given)}"
        )
    unknown = sorted(str(key) for key in outer if key not in ("name", "schema", "description", "strict"))
    if unknown:
        raise ChatError(f"json_schema of a response_format has no {', '.join(unknown)}: {shown(given)}")
    return _checked_schema(outer["schema"])


def _checked_schema(schema: Any) -> Mapping[str, Any] | bool:
    if not isinstance(schema, (Mapping, bool)):
        raise ChatError(f"the schema of response_format is a JSON Schema, an object, not {shown(schema)}")
    return schema
