"""Tools, calls and results as the prompt shows them to the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quarterdeck.chat.json_text import check_writable, parse_json
from quarterdeck.chat.messages import Source, Tool, ToolCall
from quarterdeck.chat.prompts.parts import fill_text, template_data
from quarterdeck.chat.tools.schema import arguments_of


def with_directly_answer(tools: Sequence[Tool], *, first: bool) -> list[Tool]:
    """The tools and, unless it is among them, ``directly_answer``, which models call when no other tool helps."""
    own = template_data("tool_use")["directly_answer"]
    if any(tool.name == own["name"] for tool in tools):
        return list(tools)
    added = Tool(own["name"], own["description"])
    return [added, *tools] if first else [*tools, added]


def tools_text(tools: Iterable[Tool]) -> str:
    """Tools as Python stubs: signature, description and arguments as a docstring, no body."""
    return "\n\n".join(map(_tool_text, tools))


def _tool_text(tool: Tool) -> str:
    data = template_data("tool_use")
    arguments = arguments_of(tool.parameters)
    lines = [
        fill_text(data["argument"], name=one.name, type=one.annotation, description=one.description)
        for one in arguments
    ]
    signature = [f"{one.name}: {one.annotation}{' = None' if one.is_optional else ''}" for one in arguments]
    return fill_text(
        data["tool"],
        name=tool.name,
        signature=", ".join(signature),
        description=tool.description,
        arguments=fill_text(data["arguments"], lines="\n        ".join(lines)) if lines else "",
    )


def calls_text(calls: Iterable[ToolCall]) -> str:
    """Calls as the JSON list in which models write them."""
    listed = [{"tool_name": call.name, "parameters": _parameters(call)} for call in calls]
    return json.dumps(listed, indent=4, ensure_ascii=False, allow_nan=False)


def _parameters(call: ToolCall) -> Any:
    """What a call's arguments stand for; those that the model did not finish, or nested beyond reason, stay text."""
    try:
        value = parse_json(call.arguments)
    except ValueError:
        return call.arguments
    return value if check_writable(value) is None else call.arguments


def documents_text(sources: Iterable[Source], data: Mapping[str, Any], *, titled: bool) -> str:
    """Numbered documents with one ``key: value`` line per field.

    Args:
        sources: the documents with their numbers.
        data: of the format: how a document and a field are written, and what stands between them.
        titled: write keys in title case, ``url`` as ``URL``.
    """
    texts = []
    for source in sources:
        fields = [
            fill_text(data["field"], key=_title(key) if titled else key, value=_value(value))
            for key, value in source.data.items()
        ]
        texts.append(fill_text(data["document"], number=str(source.index), fields=data["between_fields"].join(fields)))
    return str(data["between_documents"]).join(texts)


def _title(key: str) -> str:
    return "URL" if key.lower() == "url" else key.title()


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
