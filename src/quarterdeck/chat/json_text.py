"""JSON text, read strictly: what is not JSON is a ValueError, whatever Python's own reader makes of it."""

from __future__ import annotations

import json
from typing import Any

_MAX_DEPTH = 100
"""Values nested deeper are refused where they come in, so that nothing behind can run out of stack."""


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is not JSON (``NaN`` and ``Infinity`` are not), or is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("the JSON text is nested too deeply to be read") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_object(text: str) -> dict[str, Any] | None:
    """The object that a JSON text stands for; None if it stands for anything else, or is not JSON."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def compact(value: Any) -> str:
    """JSON text without white space between its tokens, and with characters as they are.

    Raises:
        TypeError, ValueError, RecursionError: the value has no JSON text.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def check_writable(value: Any) -> str | None:
    """Why a value has no JSON text, or none that can be read again, or None if it has."""
    if is_too_deep(value):
        return f"it is nested more than {_MAX_DEPTH} levels deep"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def is_too_deep(value: Any) -> bool:
    """Whether lists and dictionaries are nested deeper than is read and written here."""
    return _is_deeper(value, _MAX_DEPTH)


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and dictionaries are nested more than ``limit`` levels deep. One inside itself is."""
    level = [value]
    for _ in range(limit):
        level = list({id(inner): inner for one in level for inner in _inside(one)}.values())
    return bool(level)


def _inside(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [inner for inner in values if isinstance(inner, (dict, list, tuple))]


def kind(value: Any) -> str:
    """The type of a value by name, for a message."""
    return "null" if value is None else type(value).__name__


def shown(value: Any, limit: int = 80) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
