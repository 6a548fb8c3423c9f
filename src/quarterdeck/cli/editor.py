"""The line that a person edits: several lines, history, completion; by prompt_toolkit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.shortcuts import CompleteStyle

from quarterdeck.cli.session_help import COMMANDS

_TAKES = {command.name: command.takes for command in COMMANDS}


@dataclass(frozen=True)
class Words:
    """What can be completed: names of settings and of examples."""

    settings: Sequence[str] = ()
    examples: Sequence[str] = ()


class Editor:
    """Reads what a person writes.

    Args:
        prompt: what stands before it.
        history: file of what was written before; None keeps it for as long as the program runs.
        words: what can be completed.
        source: where keys come from, for tests; None is the terminal.
        target: where it is drawn.
    """

    def __init__(
        self,
        prompt: str,
        history: Path | None = None,
        words: Words | None = None,
        *,
        source: Input | None = None,
        target: Output | None = None,
    ) -> None:
        self._prompt = prompt
        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            multiline=True,
            key_bindings=_keys(),
            completer=SessionCompleter(words or Words()),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_system_prompt=False,
            enable_open_in_editor=False,
            prompt_continuation=lambda width, *_: "." * max(width - 1, 0) + " ",
            input=source,
            output=target,
        )

    def read(self) -> str:
        """What was written, which may have line breaks in it.

        Raises:
            EOFError: Ctrl-D on an empty line.
            KeyboardInterrupt: Ctrl-C; `has_text` then tells whether something was written.
        """
        return self._session.prompt(FormattedText([("ansigreen bold", self._prompt)]))

    @property
    def has_text(self) -> bool:
        """Whether something stood in the line when `read` was left."""
        return bool(self._session.default_buffer.text)


def _keys() -> KeyBindings:
    """Enter sends unless a backslash stands before it; Alt-Enter makes a line."""
    keys = KeyBindings()
    is_writing = has_focus(DEFAULT_BUFFER)  # and not in a search, where Enter ends the search

    @keys.add("enter", filter=is_writing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end_of_line:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=is_writing)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class SessionCompleter(Completer):
    """Completes the names of commands, and what stands behind them."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Nothing in a line that is no command."""
        text = document.text_before_cursor
        if not text.startswith("!") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            yield from _beginning_with(name, _TAKES)
            return
        match _TAKES.get(name):
            case "file":
                yield from self._paths.get_completions(Document(rest), complete_event)
            case "setting":
                word = rest.rpartition(" ")[2]
                if "=" not in word:
                    yield from _beginning_with(word, (f"{setting}=" for setting in self._words.settings))
            case "example":
                yield from _beginning_with(rest, self._words.examples)


def _beginning_with(word: str, candidates: Iterable[str]) -> Iterable[Completion]:
    return (Completion(one, -len(word)) for one in candidates if one.startswith(word))


class _QuietFileHistory(FileHistory):
    """A file that only its owner can read; a full disk costs the history, not the conversation."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError:  # a home that cannot be written to is no reason not to talk
        return InMemoryHistory()
    return _QuietFileHistory(str(path))


def history_path() -> Path:
    """Where lines are kept: ``$XDG_STATE_HOME/quarterdeck/chat_history``, below ``~/.local/state`` if that is unset."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "quarterdeck" / "chat_history"
