"""A terminal's screen, as far as our output needs one: text, line breaks, wrapping, moving up, erasing."""

from __future__ import annotations

import re

from rich.cells import cell_len

_PART = re.compile(r"\x1b\][^\x1b\x07]*(?:\x07|\x1b\\)|\x1b\[([?0-9;]*)([A-Za-z])|\n|\r|[^\x1b\n\r]")


class ScreenStandIn:
    """Lines of characters; those above the last ``height`` have scrolled away, and the cursor cannot get there."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [""]
        self.row = 0
        self.column = 0
        self.wraps = True
        self.unknown: list[str] = []

    def feed(self, text: str) -> None:
        for match in _PART.finditer(text):
            part, letter = match[0], match[2]
            if part == "\n":
                self._down()
                self.column = 0
            elif part == "\r":
                self.column = 0
            elif letter:
                self._control(match[1], letter)
            elif not part.startswith("\x1b"):
                self._put(part)

    def _control(self, numbers: str, letter: str) -> None:
        top = max(len(self.lines) - self.height, 0)
        match letter, numbers:
            case "A", _:
                self.row = max(self.row - int(numbers or 1), top)
            case "K", "" | "0":
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "J", "" | "0":
                self.lines[self.row] = self.lines[self.row][: self.column]
                del self.lines[self.row + 1 :]
            case "m", _:
                pass
            case (("h" | "l"), "?7"):
                self.wraps = letter == "h"
            case _:
                self.unknown.append(numbers + letter)

    def _put(self, character: str) -> None:
        if cell_len(self.lines[self.row][: self.column] + character) > self.width:
            if not self.wraps:
                return
            self._down()
            self.column = 0
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")
