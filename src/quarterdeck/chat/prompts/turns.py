"""The turns of a conversation that every format shows alike."""

from __future__ import annotations

from collections.abc import Sequence

from quarterdeck.chat.messages import Message
from quarterdeck.chat.prompts.parts import Part, fill, template_data


def split_preamble(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The first message's content if it is the system's, as given; and the other messages."""
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages


def spoken_turns(messages: Sequence[Message], *, strip_first: bool = True) -> list[Part]:
    """Turns of system, user and assistant; results of tools, and turns that call them, are left out.

    Contents are without the white space around them, but with ``strip_first=False`` not that of a system message
    that is the first of all.
    """
    parts: list[Part] = []
    for number, message in enumerate(messages):
        if message.role != "tool" and not message.tool_calls:
            is_kept = number == 0 and message.role == "system" and not strip_first
            parts += turn(message.role, message.content if is_kept else message.content.strip())
    return parts


def turn(role: str, content: str) -> list[Part]:
    """One turn."""
    return fill(template_data("default")[role], content=content)
