"""The interactive session of ``quarterdeck chat``: lines in, answers and the results of commands out."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from quarterdeck.cli.conversation import Conversation, parse_settings
from quarterdeck.cli.footnotes import AnswerView, Footnote
from quarterdeck.cli.terminal import Terminal
from quarterdeck.errors import InputError, QuarterdeckError

HELP = """\
!help                  show this help
!clear                 forget the conversation; the system message and the settings stay
!save [FILE]           write the messages to FILE as JSON (default: quarterdeck-chat-<time>.json here)
!set                   show the settings of generation
!set NAME=VALUE ...    change them, for example: !set temperature=0.5 max_new_tokens=100
!source [N]            open the source of footnote N of the latest answer, or list the sources
!exit                  end the session, as the end of input does
Ctrl-C stops an answer; what has come of it stays in the conversation. At the prompt it clears the line, and ends the
session if the line is empty."""


class Session:
    """Reads lines until there are no more, and answers them.

    Args:
        conversation: who answers.
        terminal: where lines come from and text goes to.
    """

    def __init__(self, conversation: Conversation, terminal: Terminal) -> None:
        self._conversation = conversation
        self._terminal = terminal
        self._saved: set[Path] = set()
        self._notes: list[Footnote] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "!help": self._help,
            "!clear": self._clear,
            "!save": self._save,
            "!set": self._set,
            "!source": self._source,
        }

    def run(self) -> None:
        """Go on until ``!exit`` or the end of input. Errors are shown, and the session goes on."""
        while (line := self._terminal.read()) is not None:
            line = line.strip()
            if line.split(maxsplit=1)[:1] == ["!exit"]:
                return
            try:
                if line.startswith("!"):
                    self._command(line)
                elif line:
                    self._answer(line)
            except (QuarterdeckError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                self._terminal.complain(str(error))

    def _answer(self, line: str) -> None:
        view = AnswerView(self._terminal)
        with closing(self._conversation.events(line)) as events:
            self._terminal.begin_answer()
            try:
                for event in events:
                    view.take(event)
            except KeyboardInterrupt:
                events.close()
                self._terminal.end_answer(stopped=True)
            else:
                self._terminal.end_answer(stopped=False)
        self._notes = list(view.notes)
        view.close()

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            self._terminal.complain(f"there is no command {name}")
            name, rest = "!help", ""
        self._commands[name](rest.strip())

    def _help(self, rest: str) -> None:
        self._terminal.show(HELP)

    def _clear(self, rest: str) -> None:
        self._conversation.clear()
        self._terminal.show("the conversation is forgotten")

    def _save(self, rest: str) -> None:
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise InputError(f"{rest!r} cannot be split into words: {error}") from error
        if len(words) > 1:
            raise InputError(f"!save takes one FILE, not {len(words)}; quote a name that has spaces")
        path = Path(words[0] if words else time.strftime("quarterdeck-chat-%Y%m%d-%H%M%S.json")).expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise InputError(f"{path} is there already; name another file")
        text = json.dumps(self._conversation.messages, ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
        self._saved.add(path.resolve())
        self._terminal.show(f"saved {len(self._conversation.messages)} messages to {path}")

    def _set(self, rest: str) -> None:
        if rest:
            self._conversation.set(parse_settings(rest))
        settings = self._conversation.settings
        self._terminal.show("\n".join(f"{name}={value}" for name, value in settings.items() if value is not None))

    def _source(self, rest: str) -> None:
        if not self._notes:
            raise InputError("the latest answer cites no sources")
        if not rest:
            return self._terminal.sources(self._notes)
        chosen = [note for note in self._notes if rest in (str(note.number), note.mark)]
        if not chosen:
            raise InputError(f"!source takes the number of a footnote, 1 to {len(self._notes)}, not {rest!r}")
        return self._terminal.show(f"{chosen[0].mark} {chosen[0].heading}\n{chosen[0].opened}")
