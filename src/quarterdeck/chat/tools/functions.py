"""Typed Python functions as tools: what they are called, what they do, and a JSON Schema of their arguments.

    def search(query: str, count: int | None = None) -> list[dict]:
        '''Searches the log.

        Args:
            query: What to look for.
            count: How many entries at most.
        '''

gives ``search``, ``Searches the log.`` and ``query`` (a string, required) and ``count`` (an integer or null).
"""  # noqa: D214

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from quarterdeck.chat.tools.python_types import literal, union
from quarterdeck.errors import ChatError

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", list: "array"}

_HINTS = "str, int, float, bool, None, list[T], dict[str, T], Literal[...] and unions of these"

_SECTION = re.compile(r"(args|arguments|parameters)\s*:", re.IGNORECASE)

_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(\([^)]*\))?\s*:\s*(.*)")


def describe(function: Callable[..., Any]) -> tuple[str, str, dict[str, Any]]:
    """Name, description and JSON Schema of the arguments of a function.

    The description is the docstring's first paragraph, an argument's its entry under ``Args:``. An argument with a
    default or with ``| None`` is optional.

    Raises:
        ChatError: an argument has no type hint, or one that a schema cannot describe, or cannot be given by name.
    """
    name = getattr(function, "__name__", "")
    if not inspect.isroutine(function) or not name:
        raise ChatError(
            f"a tool is a function or a dictionary, not {function!r}: wrap it in a function with type hints"
        )
    summary, descriptions = read_docstring(inspect.getdoc(function) or "")
    hints = _hints(function, name)
    properties: dict[str, Any] = {}
    required = []
    for parameter in _parameters(function, name):
        if parameter.name not in hints:
            raise ChatError(
                f"the parameter '{parameter.name}' of {name} has no type hint: add one of {_HINTS}, so that the model "
                "knows what to write"
            )
        schema = _schema(hints[parameter.name], f"the parameter '{parameter.name}' of {name}")
        description = descriptions.get(parameter.name)
        properties[parameter.name] = {**schema, "description": description} if description else schema
        if parameter.default is parameter.empty and not _allows_null(schema):
            required.append(parameter.name)
    return name, summary, {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:
        raise ChatError(f"the signature of {name} cannot be read: {error}; wrap it in a function") from error
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ChatError(f"the parameter '{parameter}' of {name} cannot be given by name: a tool's must be")
    return parameters


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ChatError(f"the type hints of {name} cannot be read: {error}") from error


def _schema(hint: Any, what: str) -> dict[str, Any]:
    """The JSON Schema of a type hint.

    Raises:
        ChatError: there is none for it.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (dict, typing.Dict):  # noqa: UP006 (both spellings are met)
        return {"type": "object", "additionalProperties": True}
    if hint is typing.List:  # noqa: UP006
        return {"type": "array"}
    if isinstance(hint, type) and hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], what)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _schema(inner[1], what)}
    if origin is Literal:
        try:
            return literal(list(inner))
        except ValueError as error:
            raise ChatError(f"{what} has the type hint {hint}: {error}") from error
    if origin in (Union, types.UnionType):
        return union([_schema(one, what) for one in inner])
    raise ChatError(
        f"{what} has the type hint {_hint_text(hint)}, which has no JSON Schema here; there is one for {_HINTS}"
    )


def _hint_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _allows_null(schema: dict[str, Any]) -> bool:
    types_ = schema.get("type")
    return types_ == "null" or "null" in (types_ or ()) or any(map(_allows_null, schema.get("anyOf", ())))


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring in one line, and the entries of its ``Args:`` section by name."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if _SECTION.fullmatch(line.strip())), len(lines))
    summary: list[str] = []
    for line in lines[:start]:
        if not line.strip() and summary:
            break
        summary += [line.strip()] if line.strip() else []
    return " ".join(summary), _entries(lines[start + 1 :])


def _entries(lines: list[str]) -> dict[str, str]:
    """Entries ``name (type): text``; deeper lines continue an entry, a line at the margin ends the section."""
    entries: dict[str, str] = {}
    margin, current = None, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if indent == 0:
            break
        margin = indent if margin is None else margin
        match = _ENTRY.fullmatch(line.strip()) if indent <= margin else None
        if match:
            current = match[1]
            entries[current] = match[3].strip()
        elif current:
            entries[current] = f"{entries[current]} {line.strip()}".strip()
    return entries
