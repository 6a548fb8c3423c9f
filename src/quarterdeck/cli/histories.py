"""Saved conversations: written as a JSON list of messages, and read from what else is around.

[{"role": "user", "content": "Ahoy"}, ...]                          !save here
{"settings": {...}, "chat_history": [{"role": ...}, ...]}           !save of `transformers chat`
{"messages": [{"role": ...}, ...]}                                  a request of OpenAI's or Cohere's API
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quarterdeck.errors import InputError

_LISTS = ("chat_history", "messages")


def read_history(name: str | os.PathLike[str]) -> list[Any]:
    """The messages in a file.

    Raises:
        InputError: it is not there, no JSON, or holds no list of messages.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 alike
        raise InputError(f"{path} is not JSON, as saved conversations are: {error}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _LISTS if key in value), value)
    if not isinstance(value, list):
        raise InputError(
            f"{path} holds no conversation: that is a list of messages, or an object with {' or '.join(_LISTS)}"
        )
    if not value:
        raise InputError(f"the conversation in {path} is empty")
    return value


class HistoryWriter:
    """Saves conversations, and overwrites no file but its own.

    Args:
        folder: where files go that have no name; made when it is needed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = Path(folder or "").expanduser()
        self._saved: set[Path] = set()

    def save(self, messages: Sequence[Any], name: str | None = None) -> Path:
        """Write the messages to a file of that name, or of the time; gives its path.

        Raises:
            InputError: a file of others is there.
            OSError: it cannot be written.
        """
        path = Path(name).expanduser() if name else self._folder / time.strftime("quarterdeck-chat-%Y%m%d-%H%M%S.json")
        if path.exists() and path.resolve() not in self._saved:
            raise InputError(f"{path} is there already; name another file")
        if not name:
            self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(messages, ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
        self._saved.add(path.resolve())
        return path
