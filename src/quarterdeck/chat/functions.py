"""Typed Python functions as tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def describe(function: Callable[..., Any]) -> tuple[str, str, dict[str, Any]]:
    """Name, description and JSON Schema of the arguments of a function."""
    raise NotImplementedError
