"""Tools' arguments: JSON Schema and Cohere's parameter definitions, each to the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quarterdeck.errors import ChatError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def check_tool_name(name: Any) -> None:
    """Refuses what cannot be the name of a tool.

    Raises:
        ChatError: naming it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ChatError(
            f"the name of a tool is a letter or _ and up to 63 letters, digits, _ and -, not {name!r}: rename it"
        )


def read_tool(given: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Name, description and JSON Schema of the arguments of a tool in a dictionary."""
    raise NotImplementedError
