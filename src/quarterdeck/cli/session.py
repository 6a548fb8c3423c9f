"""The interactive session of ``quarterdeck chat``: lines in, answers and the results of commands out."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from quarterdeck.chat.messages import Event, MessageEnd, Usage
from quarterdeck.cli.dialogue import Dialogue
from quarterdeck.cli.examples import EXAMPLES
from quarterdeck.cli.flags import parse_settings
from quarterdeck.cli.footnotes import AnswerView, Footnote
from quarterdeck.cli.histories import HistoryWriter, read_history
from quarterdeck.cli.session_help import HELP
from quarterdeck.cli.terminal import Terminal
from quarterdeck.errors import InputError, QuarterdeckError
from quarterdeck.generation.options import OPTIONS


@dataclass(frozen=True)
class Habits:
    """How a session behaves.

    Args:
        examples: questions by name.
        writer: what saves conversations.
        verbose: whether answers are followed by what they took.
        model: what `!status` calls the model.
    """

    examples: Mapping[str, str] = field(default_factory=lambda: EXAMPLES)
    writer: HistoryWriter = field(default_factory=HistoryWriter)
    verbose: bool = False
    model: str = "model"


class Session:
    """Reads lines until there are no more, and answers them.

    Args:
        dialogue: who answers.
        terminal: where lines come from and text goes to.
        habits: how to behave.
    """

    def __init__(self, dialogue: Dialogue, terminal: Terminal, habits: Habits | None = None) -> None:
        self._dialogue = dialogue
        self._terminal = terminal
        self._habits = habits or Habits()
        self._notes: list[Footnote] = []
        self._open_question: str | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "!help": self._help,
            "!status": self._status,
            "!clear": self._clear,
            "!retry": self._retry,
            "!undo": self._undo,
            "!save": self._save,
            "!load": self._load,
            "!example": self._example,
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

    def load(self, name: str) -> None:
        """Go on from the conversation in a file.

        Raises:
            InputError, ChatError: it holds none.
        """
        self._open_question = self._dialogue.load(read_history(name))
        self._notes = []
        count = len(self._dialogue.messages)
        waits = "" if self._open_question is None else "; the last question has no answer yet: !retry asks it"
        self._terminal.show(f"the conversation goes on after {count} messages of {name}{waits}")

    def _answer(self, line: str) -> None:
        asked = self._questions()
        try:
            self._show_answer(line)
        finally:
            self._open_question = line if self._questions() == asked else None

    def _show_answer(self, line: str) -> None:
        view, began = AnswerView(self._terminal), time.perf_counter()
        last: Event | None = None
        stopped = True
        with closing(self._dialogue.events(line)) as events:
            self._terminal.begin_answer()
            try:
                for event in events:
                    last = event
                    view.take(event)
                stopped = False
            except KeyboardInterrupt:
                events.close()
            finally:
                self._terminal.end_answer(stopped=stopped)
                self._notes = list(view.notes)
        view.close()
        if self._habits.verbose and isinstance(last, MessageEnd):
            self._terminal.remark(_figures(last.response.usage, time.perf_counter() - began))

    def _questions(self) -> int:
        return sum(message["role"] == "user" for message in self._dialogue.messages)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            self._terminal.complain(f"there is no command {name}")
            name, rest = "!help", ""
        self._commands[name](rest.strip())

    def _help(self, rest: str) -> None:
        self._terminal.show(HELP)

    def _status(self, rest: str) -> None:
        facts = {"model": self._habits.model, **self._dialogue.status(), "questions": str(self._questions())}
        system = next((m["content"] for m in self._dialogue.messages[:1] if m["role"] == "system"), None)
        if system:
            facts["system message"] = system
        width = max(map(len, facts)) + 2
        self._terminal.show("\n".join(f"{name + ':':{width}}{value}" for name, value in facts.items()))

    def _clear(self, rest: str) -> None:
        self._dialogue.clear()
        self._open_question = None
        self._terminal.show("the conversation is forgotten")

    def _retry(self, rest: str) -> None:
        self._answer(self._dialogue.take_back() if self._open_question is None else self._open_question)

    def _undo(self, rest: str) -> None:
        self._terminal.show(f"forgotten: {self._dialogue.take_back()}")

    def _save(self, rest: str) -> None:
        path = self._habits.writer.save(self._dialogue.messages, _file_name("!save", rest))
        self._terminal.show(f"saved {len(self._dialogue.messages)} messages to {path}")

    def _load(self, rest: str) -> None:
        name = _file_name("!load", rest)
        if name is None:
            raise InputError("!load takes the FILE of a saved conversation")
        self.load(name)

    def _example(self, rest: str) -> None:
        examples = self._habits.examples
        if not rest:
            return self._terminal.show("\n".join(f"{name}: {text}" for name, text in examples.items()))
        if rest not in examples:
            raise InputError(f"there is no example {rest!r}; there are {', '.join(examples)}")
        self._terminal.show(examples[rest])
        return self._answer(examples[rest])

    def _set(self, rest: str) -> None:
        if rest:
            self._dialogue.set(parse_settings(rest))
        self._terminal.show("\n".join(_worth_showing(self._dialogue.settings)))

    def _source(self, rest: str) -> None:
        if not self._notes:
            raise InputError("the latest answer cites no sources")
        if not rest:
            return self._terminal.sources(self._notes)
        chosen = [note for note in self._notes if rest in (str(note.number), note.mark)]
        if not chosen:
            raise InputError(f"!source takes the number of a footnote, 1 to {len(self._notes)}, not {rest!r}")
        return self._terminal.show(f"{chosen[0].mark} {chosen[0].heading}\n{chosen[0].opened}")


_ALWAYS_SHOWN = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")


def _worth_showing(settings: Mapping[str, Any]) -> Iterable[str]:
    """``name=value`` of those that differ from what they are everywhere, and of those that people look for."""
    for name, value in settings.items():
        usual = OPTIONS[name].default if name in OPTIONS else None
        if value is not None and (name in _ALWAYS_SHOWN or value != usual):
            yield f"{name}={value}"


def _file_name(command: str, rest: str) -> str | None:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"{rest!r} cannot be split into words: {error}") from error
    if len(words) > 1:
        raise InputError(f"{command} takes one FILE, not {len(words)}; quote a name that has spaces")
    return words[0] if words else None


def _figures(usage: Usage, seconds: float) -> str:
    speed = f", {usage.output_tokens / seconds:.1f} tokens/s" if seconds > 0 else ""
    again = f" ({usage.cached_tokens} of them read before)" if usage.cached_tokens else ""
    return f"{usage.input_tokens} tokens read{again}, {usage.output_tokens} written in {seconds:.1f} s{speed}"
