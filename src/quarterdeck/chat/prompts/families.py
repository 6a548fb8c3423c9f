"""Built-in chat templates in Jinja, by checkpoint family, for checkpoints whose own are missing or stale.

`render` needs none of these: it makes prompts safe from control tokens in texts. They are for the Hugging Face way of
doing it, where a tokenizer carries its templates:

    tokenizer.chat_template = builtin_templates("CohereForAI/c4ai-command-r-v01")
    tokenizer.apply_grounded_generation_template(conversation, documents)

Their text is put together from the same data (templates/*.json) that `render` fills.

    command-r           the templates that were published in March 2024
    command-r-2024-07   tools as JSON Schema too, and calls and results in the conversation
    command-r-08-2024   the same; this generation's own texts for tools and documents are not public
    aya                 no tools, no documents
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from quarterdeck.chat.prompts.parts import template_data
from quarterdeck.errors import ChatError

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_REFERENCE = re.compile(r"\[\[([a-z_.]+)\]\]")

_SNIPPETS: Mapping[str, Mapping[str, str]] = {
    "rag": {"preamble": "preamble", "turns": "turns", "documents": "documents", "instructions": "instructions"},
    "tool_use": {"preamble": "preamble", "turns": "turns", "tools": "tools"},
    "tool_use_json_schema": {"preamble": "preamble", "turns": "turns_with_calls", "tools": "tools"},
}
"""For each template, the file that stands in place of each placeholder of its format's prompt."""


def family_of(name: str) -> str:
    """The family of a checkpoint by its name; "command-r" if the name does not say.

    Example: ``family_of("CohereForAI/aya-expanse-8b") == "aya"``.
    """
    lowered = name.lower()
    if "aya" in re.split(r"[^a-z]+", lowered):
        return "aya"
    return "command-r-08-2024" if "08-2024" in lowered else "command-r"


def builtin_templates(name: str = "command-r") -> dict[str, str]:
    """Jinja templates by name ("default", "rag", "tool_use") for a family, or for a checkpoint by its name."""
    families = template_data("families")
    return {key: jinja_template(kind) for key, kind in families[name if name in families else family_of(name)].items()}


@lru_cache(maxsize=8)
def jinja_template(name: str) -> str:
    """The text of one built-in template.

    Raises:
        ChatError: there is none of that name.
    """
    if name == "default":
        return _file("default")
    if name not in _SNIPPETS:
        raise ChatError(f"there is no built-in template {name!r}; there are default, {', '.join(_SNIPPETS)}")
    data = template_data("rag" if name == "rag" else "tool_use")
    pieces = _PLACEHOLDER.split(data["prompt"])
    snippets = _SNIPPETS[name]
    prompt = "".join(
        _with_texts(_file(snippets[piece]), data) if number % 2 else _shown(piece)
        for number, piece in enumerate(pieces)
    )
    return prompt + _file("generation_prompt")


def _file(name: str) -> str:
    path = resources.files("quarterdeck.chat.prompts").joinpath("templates", f"{name}.jinja")
    return path.read_text(encoding="utf-8").rstrip("\n")


def _with_texts(snippet: str, data: Mapping[str, Any]) -> str:
    def text(match: re.Match[str]) -> str:
        value: Any = data
        for key in match[1].split("."):
            value = value[key]
        return json.dumps(value)

    return _REFERENCE.sub(text, snippet)


def _shown(text: str) -> str:
    """Jinja that writes a text; only the token at the beginning is the tokenizer's own."""
    begin, found, rest = text.rpartition("<BOS_TOKEN>")
    return f"{begin}{'{{ bos_token }}' if found else ''}{{{{ {json.dumps(rest)} }}}}" if text else ""
