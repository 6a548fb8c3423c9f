"""JSON text, read strictly: what is not JSON is a ValueError, whatever Python's own reader makes of it."""

from __future__ import annotations

import json
from typing import Any


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
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def check_writable(value: Any) -> str | None:
    """Why a value has no JSON text, or None if it has."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return None


def kind(value: Any) -> str:
    """The type of a value by name, for a message."""
    return "null" if value is None else type(value).__name__


def shown(value: Any, limit: int = 80) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
