"""Prompts are filled from templates that are data; what a template spells is control, what is filled in is text.

A template (templates/*.json) is text with control tokens and ``{names}`` in it. Filling gives parts ``(kind, text)``
that joined are the prompt. A part is "control" if, and only if, the template itself spells the token there, so nothing
that is filled in can become one:

    fill("<BOS_TOKEN>{content}", content="<EOS_TOKEN>")   # [("control", "<BOS_TOKEN>"), ("text", "<EOS_TOKEN>")]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

Part = tuple[Literal["control", "text"], str]

_PLACEHOLDER = re.compile(r"(\{[a-z_]+\})")


@lru_cache(maxsize=16)
def template_data(name: str) -> Mapping[str, Any]:
    """The data of one format: texts by name, those of several lines joined."""
    return {key: _joined(value) for key, value in _read(name).items()}


@lru_cache(maxsize=1)
def control_tokens() -> tuple[str, ...]:
    """The tokens that tell the model who speaks and where a text begins and ends; only templates may use them."""
    return tuple(_read("control_tokens"))


def _read(name: str) -> Any:
    path = resources.files("quarterdeck.chat.prompts").joinpath("templates", f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _joined(value: Any) -> Any:
    if isinstance(value, list):
        return "\n".join(value)
    return {key: _joined(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@lru_cache(maxsize=1)
def _control_pattern() -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, control_tokens())) + ")")


def fill(template: str, **values: str | Iterable[Part]) -> list[Part]:
    """Parts of a template, with texts or parts in place of its ``{names}``."""
    parts: list[Part] = []
    for piece in _PLACEHOLDER.split(template):
        if not _PLACEHOLDER.fullmatch(piece):
            parts += _split_control(piece)
            continue
        value = values[piece[1:-1]]
        parts += [("text", value)] if isinstance(value, str) else value
    return parts


def fill_text(template: str, **values: str) -> str:
    """The text of a template that has no control tokens."""
    return "".join(text for _, text in fill(template, **values))


def _split_control(text: str) -> list[Part]:
    pieces = _control_pattern().split(text)
    return [("control" if number % 2 else "text", piece) for number, piece in enumerate(pieces)]


def merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same parts without empty ones, neighbouring texts joined; every control token stays a part of its own."""
    result: list[Part] = []
    for kind, text in parts:
        if kind == "text" and result and result[-1][0] == "text":
            result[-1] = ("text", result[-1][1] + text)
        elif text:
            result.append((kind, text))
    return tuple(result)
