"""Where a session reads and writes: a terminal with colours, or plain lines where there is none."""

from __future__ import annotations

import importlib
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol, TextIO

from rich.console import Console
from rich.style import Style
from rich.text import Text

from quarterdeck.cli.footnotes import Footnote, Screen


class Terminal(Screen, Protocol):
    """What a session needs."""

    def read(self) -> str | None:
        """The next line, None at the end of input."""
        ...

    def begin_answer(self) -> None:
        """An answer comes next."""
        ...

    def end_answer(self, *, stopped: bool) -> None:
        """The answer is over, or was stopped."""
        ...

    def show(self, text: str) -> None:
        """Show the result of a command."""
        ...

    def complain(self, text: str) -> None:
        """Show an error."""
        ...


class PlainTerminal:
    """Lines of standard input, answers on standard output, errors on standard error; nothing else.

    Text goes out as it is, to a terminal without the control characters in it.
    """

    def __init__(self, source: TextIO, target: TextIO, errors: TextIO) -> None:
        self._source, self._target, self._errors = source, target, errors

    def read(self) -> str | None:
        """The next line, None at the end of input."""
        return self._source.readline() or None

    def begin_answer(self) -> None:
        """Nothing to show."""

    def write(self, piece: str) -> None:
        """The piece itself."""
        _print(piece, self._target, end="")

    def mark(self, note: Footnote) -> None:
        """Its number in brackets."""
        self.write(note.mark)

    def remark(self, text: str) -> None:
        """A line of its own."""
        self.show(text)

    def sources(self, notes: Iterable[Footnote]) -> None:
        """A paragraph of footnotes."""
        lines = [line for note in notes for line in note.lines()]
        self.show("\n".join(["", "Sources", *lines, ""]))

    def end_answer(self, *, stopped: bool) -> None:
        """A line break."""
        print(file=self._target, flush=True)

    def show(self, text: str) -> None:
        """The text and a line break."""
        _print(text, self._target)

    def complain(self, text: str) -> None:
        """The text on standard error."""
        _print(f"quarterdeck: {text}", self._errors)


class RichTerminal:
    """A person at a terminal: a prompt, colours, line editing and history where Python has them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        with suppress(ImportError):  # not there on every system; importing it gives input() editing and history
            importlib.import_module("readline")

    def read(self) -> str | None:
        """The next line, None at the end of input. An interrupt clears a line that is not empty."""
        while True:
            try:
                return input("you> ")  # not the console's: line editing must know the prompt, or it overwrites it
            except EOFError:
                self._console.print()
                return None
            except KeyboardInterrupt:
                if not _has_typed():
                    raise
                self._console.print()

    def begin_answer(self) -> None:
        """Who speaks."""
        self._print("model> ", "bold blue", end="")

    def write(self, piece: str) -> None:
        """The piece as text: neither markup nor the terminal's own control sequences in it have an effect."""
        self._print(piece, end="")

    def mark(self, note: Footnote) -> None:
        """Its number in brackets, which terminals that can do so open when it is clicked on."""
        self._print(note.mark, Style(color="cyan", link=note.link), end="")

    def remark(self, text: str) -> None:
        """A line of its own, dimmed."""
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
        self._print(" [stopped]" if stopped else "", "yellow")

    def show(self, text: str) -> None:
        """The text, dimmed."""
        self._print(text, "dim")

    def complain(self, text: str) -> None:
        """The text in red."""
        self._print(text, "red")

    def _print(self, text: str, style: str | Style = "", end: str = "\n") -> None:
        self._console.print(Text(_without_controls(text), style=style), end=end, soft_wrap=True)


def _has_typed() -> bool:
    """Whether there is something in the line being edited, as far as can be known."""
    readline = sys.modules.get("readline")
    return readline is not None and bool(readline.get_line_buffer())


def _print(text: str, target: TextIO, end: str = "\n") -> None:
    print(_without_controls(text) if target.isatty() else text, end=end, file=target, flush=True)


def _without_controls(text: str) -> str:
    """The text without control characters but tabs and line breaks."""
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc")


def open_terminal() -> Terminal:
    """A rich one if a person sits at both ends, else a plain one."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return RichTerminal(Console(highlight=False))
    return PlainTerminal(sys.stdin, sys.stdout, sys.stderr)


def open_screen() -> Screen:
    """A rich one if a person reads the output, else a plain one."""
    if sys.stdout.isatty():
        return RichTerminal(Console(highlight=False))
    return PlainTerminal(sys.stdin, sys.stdout, sys.stderr)
