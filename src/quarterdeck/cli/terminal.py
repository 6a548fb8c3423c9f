"""Where a session reads and writes, and the plain way to do so: lines in, lines out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Protocol, TextIO

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

    A backslash at the end of a line joins the next one to it, with a line break between.

    Text goes out as it is, to a terminal without the control characters in it.
    """

    def __init__(self, source: TextIO, target: TextIO, errors: TextIO) -> None:
        self._source, self._target, self._errors = source, target, errors

    def read(self) -> str | None:
        """The next line, None at the end of input."""
        lines = [self._source.readline()]
        while lines[-1].removesuffix("\n").endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\n").removesuffix("\\") + "\n"
            lines.append(self._source.readline())
        return "".join(lines) or None

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


def _print(text: str, target: TextIO, end: str = "\n") -> None:
    print(without_controls(text) if target.isatty() else text, end=end, file=target, flush=True)


def without_controls(text: str) -> str:
    """The text without control characters but tabs and line breaks."""
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc")
