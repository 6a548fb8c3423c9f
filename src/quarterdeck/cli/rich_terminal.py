"""A person at a terminal: a line to edit, colours, Markdown."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from quarterdeck.cli.editor import Editor
from quarterdeck.cli.footnotes import Footnote, Screen
from quarterdeck.cli.markdown import MarkdownStream
from quarterdeck.cli.terminal import PlainTerminal, Terminal, without_controls


class RichTerminal:
    """A screen with colours, and a line to edit.

    Args:
        console: the screen.
        editor: what reads lines; None for a screen that is only written to.
        markdown: whether answers are shown as the Markdown that they are written in.
        speaker: what stands before an answer.
    """

    def __init__(
        self, console: Console, editor: Editor | None = None, *, markdown: bool = False, speaker: str = "model"
    ) -> None:
        self._console = console
        self._editor = editor
        self._markdown = markdown
        self._speaker = speaker
        self._stream: MarkdownStream | None = None
        self._keyboard = Keyboard()

    def read(self) -> str | None:
        """What a person writes, None at the end of input.

        An interrupt clears a line that is not empty. On an empty one, twice, it is raised.
        """
        assert self._editor is not None
        interrupted = False
        while True:
            try:
                return self._editor.read()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if interrupted and not self._editor.has_text:
                    raise
                interrupted = not self._editor.has_text
                if interrupted:
                    self.show("Ctrl-C once more, or Ctrl-D, ends the session")

    def begin_answer(self) -> None:
        """Who speaks. Until the answer ends, keys are not shown."""
        self._keyboard.hide()
        self._print(f"{self._speaker}>{'' if self._markdown else ' '}", "bold blue", end="\n" if self._markdown else "")

    def write(self, piece: str) -> None:
        """The piece: what would steer the terminal in it has no effect."""
        if not self._markdown:
            return self._print(piece, end="")
        if self._stream is None:
            self._stream = MarkdownStream(self._console)
        return self._stream.feed(without_controls(piece))

    def mark(self, note: Footnote) -> None:
        """Its number in brackets, which terminals that can do so open when it is clicked on."""
        if self._stream is not None:
            return self._stream.mark(note.mark, note.link)
        return self._print(note.mark, Style(color="cyan", link=note.link), end="")

    def remark(self, text: str) -> None:
        """A line of its own, dimmed."""
        self._end_stream()
        self._print(text, "dim italic")

    def sources(self, notes: Iterable[Footnote]) -> None:
        """The footnotes, with links where there is something to open."""
        self._print("\nSources", "bold")
        for note in notes:
            first, *others = note.lines()
            self._print(first, Style(color="cyan", link=note.link))
            for line in others:
                self._print(line, "dim")

    def end_answer(self, *, stopped: bool) -> None:
        """A line break."""
        was_markdown = self._stream is not None
        try:
            self._end_stream()
        finally:
            self._keyboard.show()
        if stopped or not was_markdown:
            self._print("[stopped]" if stopped and was_markdown else " [stopped]" if stopped else "", "yellow")

    def show(self, text: str) -> None:
        """The text, dimmed."""
        self._print(text, "dim")

    def complain(self, text: str) -> None:
        """The text in red."""
        self._print(text, "red")

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _print(self, text: str, style: str | Style = "", end: str = "\n") -> None:
        self._console.print(Text(without_controls(text), style=style), end=end, soft_wrap=True)


class Keyboard:
    """The terminal's echo of keys, which would stand in the middle of an answer. Nothing where there is no terminal."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        self._termios: Any = None
        with suppress(ImportError):  # not there on every system
            self._termios = importlib.import_module("termios")

    def hide(self) -> None:
        """Show no keys. Ctrl-C goes on to interrupt."""
        if self._termios is None or self._before is not None:
            return
        with suppress(self._termios.error, ValueError, OSError):
            before = self._termios.tcgetattr(sys.stdin.fileno())
            quiet = [*before[:3], before[3] & ~self._termios.ECHO, *before[4:]]
            self._termios.tcsetattr(sys.stdin.fileno(), self._termios.TCSADRAIN, quiet)
            self._before = before

    def show(self) -> None:
        """As before."""
        before, self._before = self._before, None
        if before is not None:
            with suppress(self._termios.error, ValueError, OSError):
                self._termios.tcsetattr(sys.stdin.fileno(), self._termios.TCSADRAIN, before)


def has_person() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def can_draw(console: Console) -> bool:
    """Whether Markdown can be drawn: the terminal has a cursor that moves, and nobody asked for plain text."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")


def open_console() -> Console:
    """The screen."""
    return Console(highlight=False)


def open_screen() -> Screen:
    """A screen with colours if a person reads the output, else a plain one; texts are shown as they are."""
    return RichTerminal(open_console()) if sys.stdout.isatty() else plain_terminal()


def plain_terminal() -> Terminal:
    """Standard input and output as they are."""
    return PlainTerminal(sys.stdin, sys.stdout, sys.stderr)
