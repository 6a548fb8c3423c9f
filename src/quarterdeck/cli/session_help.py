"""The commands of a session: their names, what they take, what they do. One table for help and for completion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SessionCommand:
    """One command.

    Args:
        name: with its exclamation mark.
        arguments: as the help shows them.
        effect: what it does.
        takes: what may be completed behind it.
    """

    name: str
    arguments: str
    effect: str
    takes: Literal["nothing", "file", "setting", "example"] = "nothing"


COMMANDS = (
    SessionCommand("!help", "", "show this help"),
    SessionCommand("!status", "", "show the model, the settings that differ, and how long the conversation is"),
    SessionCommand("!clear", "", "forget the conversation; the system message and the settings stay"),
    SessionCommand("!retry", "", "ask the last question again"),
    SessionCommand("!undo", "", "forget the last question and its answer"),
    SessionCommand("!save", "[FILE]", "write the messages to FILE as JSON (default: a new file)", "file"),
    SessionCommand("!load", "FILE", "go on from a saved conversation in place of this one", "file"),
    SessionCommand("!example", "[NAME]", "ask the question of that name, or list the names", "example"),
    SessionCommand("!set", "[NAME=VALUE ...]", "change settings of generation, or show them", "setting"),
    SessionCommand("!source", "[N]", "open the source of footnote N of the latest answer, or list the sources"),
    SessionCommand("!exit", "", "end the session, as Ctrl-D on an empty line does"),
)

_KEYS = """\
Enter sends. Alt-Enter, a backslash at the end of a line, or a pasted text make more lines. Up, Down and Ctrl-R find
what was written before; Tab completes commands.
Ctrl-C stops an answer; what has come of it stays in the conversation. At the prompt it clears the line; on an empty
line, twice, it ends the session."""


def _lines() -> Iterable[str]:
    width = max(len(f"{command.name} {command.arguments}") for command in COMMANDS)
    for command in COMMANDS:
        yield f"{f'{command.name} {command.arguments}':{width}}  {command.effect}"


HELP = "\n".join([*_lines(), _KEYS])
