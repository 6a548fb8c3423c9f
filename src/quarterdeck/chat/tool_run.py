"""Runs the calls that a model asks for, and makes documents of what comes back. Errors are results too."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quarterdeck.chat.answers.visible import DIRECTLY_ANSWER
from quarterdeck.chat.json_text import check_writable, is_too_deep, shown
from quarterdeck.chat.messages import Document, Tool, ToolCall
from quarterdeck.chat.tools.arguments import violation
from quarterdeck.errors import ChatError


class ToolBox:
    """Tools that can be run.

    Raises:
        ChatError: there is none, one has no function, an ``async`` one or a generator, or is called `directly_answer`.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        if not self._tools:
            raise ChatError("an agent has at least one tool; without tools, ask the model itself")
        for tool in self._tools.values():
            if tool.function is None:
                raise ChatError(f"the tool {tool.name} has no function to run: give a Python function, or set it")
            if inspect.iscoroutinefunction(tool.function):
                raise ChatError(f"the function of the tool {tool.name} is async: wrap it in one that waits for it")
            if inspect.isgeneratorfunction(tool.function) or inspect.isasyncgenfunction(tool.function):
                raise ChatError(f"the function of the tool {tool.name} yields: wrap it in one that returns a list")
            if tool.name == DIRECTLY_ANSWER:
                raise ChatError(f"{DIRECTLY_ANSWER} is what a model calls to use no tool: rename the tool")

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def run(self, call: ToolCall) -> tuple[Document, ...]:
        """The results of one call: one document, or one for each dictionary of a list.

        Whatever goes wrong (no such tool, arguments that do not fit, an exception) is one document with an ``error``.
        Only what is no `Exception` passes through: `KeyboardInterrupt`, `SystemExit`.
        """
        try:
            return documents_of(self._call(call))
        except Exception as error:  # noqa: BLE001  # a tool may raise anything, and the model is to see it
            return (Document(_plain({"error": _said(error)})),)

    def _call(self, call: ToolCall) -> Any:
        tool = self._tools.get(call.name)
        if tool is None or tool.function is None:
            raise ValueError(f"there is no tool {call.name!r}; there are {', '.join(self._tools)}")
        parameters = call.parameters
        wrong = violation(parameters, {**tool.parameters, "type": "object"})
        if wrong is not None:
            raise ValueError(f"the arguments of {call.name} do not fit: {wrong}")
        return tool.function(**_with_nulls(tool, parameters))


def _said(error: Exception) -> str:
    """The class and the message of an error; the class alone if it cannot say more."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # its __str__ may raise anything, too
        return type(error).__name__


def _with_nulls(tool: Tool, parameters: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments: what may be left out, but has no default in the function, is None."""
    assert tool.function is not None
    try:
        signature = inspect.signature(tool.function)
    except (TypeError, ValueError):
        return parameters
    required = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    optional = set(tool.parameters.get("properties") or ()) - set(tool.parameters.get("required") or ())
    return {**{name: None for name in signature.parameters if name in required & optional}, **parameters}


def documents_of(value: Any) -> tuple[Document, ...]:
    """What a tool returned as documents: a dictionary is one, a list of dictionaries one each, all else its text.

    As with `Document.of`, an ``id`` in a dictionary becomes the document's, and is not shown to the model.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    if items and all(isinstance(item, Mapping) for item in items):
        return tuple(_document(_plain(item)) for item in items)
    return (Document(_plain({"output": str(value)})),)


def _document(fields: dict[str, Any]) -> Document:
    name = fields.get("id")
    if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
        return Document(fields)
    return Document({key: value for key, value in fields.items() if key != "id"}, str(name))


def _plain(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields with nothing that a prompt cannot show: values without JSON text become their own text."""
    plain = {str(key): _writable(value) for key, value in fields.items()}
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    loaded: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))  # halves of surrogate pairs become ?
    return loaded


def _writable(value: Any) -> Any:
    if check_writable(value) is None:
        return value
    if is_too_deep(value):
        return shown(value)
    if isinstance(value, Mapping):
        return {str(key): _writable(inner) for key, inner in value.items()}
    return str(value)
