"""Markdown of an answer at a terminal, shown while it is written.

Blocks (paragraphs, lists, code, tables) that are complete are printed once and never touched again. Only the one that
is still being written is drawn anew when it grows, in a `LiveRegion`, so the end looks the same however the text came
in pieces, nothing flickers, and what has scrolled away is there once.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment, Segments
from rich.style import Style
from rich.syntax import Syntax

from quarterdeck.cli.live import LiveRegion

_PAUSE = 0.05
"""Least seconds between two drawings of a block that grows."""

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.M)
_MARK = re.compile(r"(\[[0-9]+\])")


def _parser() -> MarkdownIt:
    """CommonMark with tables; what looks like HTML is text, since models write about <tags>."""
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


class _Code(CodeBlock):
    """Code on the terminal's own background, without padding, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(
            str(self.text).rstrip(), self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default"
        )


class _Heading(Heading):
    """All headings begin at the left."""

    LEVEL_ALIGN: ClassVar = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class ChatMarkdown(Markdown):
    """Markdown as chat models write it: a single line break is a line break, addresses of links are shown."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = source
        self.parsed = _with_line_breaks(_parser().parse(source))


def _with_line_breaks(tokens: list[Token]) -> list[Token]:
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def blocks(source: str) -> list[str]:
    r"""The text cut before every block at the top level; joined again they are the text. The last may yet grow.

    >>> blocks("Ahoy\n\n- one\n- two\n")
    ['Ahoy\n\n', '- one\n- two\n']
    """
    lines = source.split("\n")
    lines = [*(f"{line}\n" for line in lines[:-1]), *lines[-1:]]
    tops = [token.map[0] for token in _parser().parse(source) if token.level == 0 and token.map and token.nesting >= 0]
    edges = [0, *sorted(set(tops) - {0}), len(lines)]
    return ["".join(lines[begin:end]) for begin, end in itertools.pairwise(edges) if any(lines[begin:end])]


class MarkdownStream:
    """Shows a text that comes in pieces.

    Args:
        console: where to.
        clock: seconds; tells when a block that grows may be drawn again.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._region = LiveRegion(console)
        self._pending = ""
        self._has_blocks = False
        self._drawn_at = float("-inf")
        self._links: dict[str, str | None] = {}

    def feed(self, piece: str) -> None:
        """Some more text, without control characters but line breaks and tabs."""
        self._pending += piece
        if self._clock() - self._drawn_at >= _PAUSE:
            self._draw()

    def mark(self, mark: str, link: str | None) -> None:
        """A footnote's mark such as ``[1]``, which is text to Markdown too, and what it leads to."""
        self._links[mark] = link
        is_code = len(_FENCE.findall(self._pending)) % 2 == 1
        self.feed(mark if is_code else mark.replace("[", "\\[").replace("]", "\\]"))

    def close(self) -> None:
        """There is no more; what has come stays on the screen."""
        self._draw(is_all=True)

    def _draw(self, is_all: bool = False) -> None:
        parts = blocks(self._pending)
        # a line that has just begun may yet belong to the block before it: "2" becomes "2. second"
        open_parts = 0 if is_all else 1 if parts and "\n" in parts[-1] else 2
        done, growing = parts[: max(len(parts) - open_parts, 0)], parts[max(len(parts) - open_parts, 0) :]
        fixed = self._lines(done)
        self._has_blocks = self._has_blocks or bool(fixed)
        self._region.show(fixed, self._lines(growing))
        self._pending = "".join(growing)
        self._drawn_at = self._clock()

    def _lines(self, sources: Iterable[str]) -> list[str]:
        """The blocks as lines with the terminal's sequences in them, an empty one before each block but the first."""
        lines: list[str] = []
        for source in filter(str.strip, sources):
            if lines or self._has_blocks:
                lines.append("")
            lines += _drawn(self._console, source, self._links)
        return lines


def _drawn(console: Console, source: str, links: Mapping[str, str | None]) -> list[str]:
    width = max(console.width - 1, 10)  # the last column is left free: some terminals wrap when it is filled
    rendered = console.render_lines(ChatMarkdown(source), console.options.update(width=width), pad=False)
    lines = [_stripped(_with_marks(line, links)) for line in rendered]
    with console.capture() as captured:
        for line in lines:
            console.print(Segments([*line, Segment.line()]), soft_wrap=True, end="")
    return captured.get().split("\n")[: len(lines)]


def _stripped(line: list[Segment]) -> list[Segment]:
    """Without the spaces at its end that have no colour."""
    line = list(line)
    while line and not (line[-1].style and line[-1].style.bgcolor and not line[-1].style.bgcolor.is_default):
        kept = line[-1].text.rstrip(" ")
        if kept:
            return [*line[:-1], Segment(kept, line[-1].style)]
        line.pop()
    return line


def _with_marks(line: list[Segment], links: Mapping[str, str | None]) -> list[Segment]:
    """Marks of footnotes in their colour, with links."""
    if not links:
        return line
    found = []
    for text, style, _ in line:
        for part in _MARK.split(text):
            own = Style(color="cyan", link=links[part]) if part in links else Style()
            found.append(Segment(part, (style or Style()) + own))
    return [segment for segment in found if segment.text]
