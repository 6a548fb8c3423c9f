"""Runs the calls that a model asks for, and makes documents of what comes back. Errors are results too."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quarterdeck.chat.answers.visible import DIRECTLY_ANSWER
from quarterdeck.chat.json_text import check_writable, shown
from quarterdeck.chat.messages import Document, Tool, ToolCall
from quarterdeck.chat.tools.arguments import violation
from quarterdeck.errors import ChatError


class ToolBox:
    """Tools that can be run.

    Raises:
        ChatError: there is none, one has no function or an ``async`` one, or is called `directly_answer`.
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
            return (Document(_plain({"error": f"{type(error).__name__}: {error}"})),)

    def _call(self, call: ToolCall) -> Any:
        tool = self._tools.get(call.name)
        if tool is None or tool.function is None:
            raise ValueError(f"there is no tool {call.name!r}; there are {', '.join(self._tools)}")
        parameters = call.parameters
        wrong = violation(parameters, {**tool.parameters, "type": "object"})
        if wrong is not None:
            raise ValueError(f"the arguments of {call.name} do not fit: {wrong}")
        return tool.function(**_with_nulls(tool, parameters))


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
    """What a tool returned as documents: a dictionary is one, a list of dictionaries one each, all else its text."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if items and all(isinstance(item, Mapping) for item in items):
        return tuple(Document(_plain(item)) for item in items)
    return (Document(_plain({"output": str(value)})),)


def _plain(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields with nothing that a prompt cannot show: values without JSON text become their own text."""
    plain = {str(key): _writable(value) for key, value in fields.items()}
    text = json.dumps(plain, ensure_ascii=False)
    loaded: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))  # halves of surrogate pairs become ?
    return loaded


def _writable(value: Any) -> Any:
    if check_writable(value) is None:
        return value
    if isinstance(value, Mapping):
        try:
            return {str(key): _writable(inner) for key, inner in value.items()}
        except RecursionError:
            return shown(value)
    return str(value)
