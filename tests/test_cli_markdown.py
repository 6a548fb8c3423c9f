"""Markdown at a terminal, as it is written: the same screen however it comes, nothing twice, nothing that steers."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from quarterdeck.chat.messages import Source
from quarterdeck.cli.footnotes import Footnote
from quarterdeck.cli.markdown import MarkdownStream, blocks
from quarterdeck.cli.rich_terminal import RichTerminal, can_draw
from terminal_screen import ScreenStandIn

TEXT = """\
# Penguins

Emperor penguins are the **tallest**,
and `<live>` in the <south>: 企鵝 住在 南極洲 and a very long line that has to be wrapped somewhere.

- one
- two
  with *more*

1. first

2. second

```python
def swim(penguin):
    # a comment that is too long for the width of this terminal by far
    return f"{penguin}\\n"
```

| name | height |
|---|---|
| emperor | 115 cm |

> quoted

---

    code
Setext
===
The end 🐧 ~~no~~."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.02
        return self.now


def shown(pieces: list[str], width: int = 40, height: int = 12) -> ScreenStandIn:
    screen = ScreenStandIn(width, height)
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=True, color_system="truecolor", width=width, height=height, legacy_windows=False
    )
    stream = MarkdownStream(console, Clock())
    for piece in pieces:
        stream.feed(piece)
        screen.feed(output.getvalue())
        output.seek(0)
        output.truncate()
    stream.close()
    screen.feed(output.getvalue())
    assert screen.unknown == []
    assert screen.wraps
    return screen


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("height", [4, 12, 100])
@pytest.mark.parametrize("size", [1, 3, 17])
def test_the_end_looks_the_same_however_the_text_came(size: int, height: int) -> None:
    assert shown(cut(TEXT, size), height=height).text == shown([TEXT], height=1000).text


_WORDS = st.sampled_from(
    ["a ", "**b** ", "`c` ", "\n", "\n\n", "- d", "1. e", "```\n", "# f", "> g", "| h |", "企鵝", "--", "    "]
)


@settings(max_examples=40)
@given(st.lists(_WORDS, max_size=25), st.integers(3, 9))
def test_any_text_looks_the_same_however_it_came(words: list[str], height: int) -> None:
    assert shown(words, 16, height).text == shown(["".join(words)], 16, 1000).text


def test_what_is_shown() -> None:
    text = shown([TEXT]).text
    for part in (
        "Penguins\n",
        "tallest,\nand <live> in the <south>",
        "南極洲",
        " • one",
        " 1 first",
        "def swim",
        "emperor",
        "▌ quoted",
    ):
        assert part in text, text
    for mark in ("**", "```", "# P", "|---"):
        assert mark not in text


def test_blocks_are_the_text() -> None:
    parts = blocks(TEXT)
    assert "".join(parts) == TEXT
    assert parts[0] == "# Penguins\n\n"
    assert blocks("") == []


def test_only_what_changes_is_written_again() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system=None, width=40, height=30)
    stream = MarkdownStream(console, Clock())
    clock = stream._clock
    stream.feed("The first line\nand the second")
    assert isinstance(clock, Clock)
    clock.now += 1
    output.seek(0)
    output.truncate()
    stream.feed(" goes on")
    assert "first" not in output.getvalue()
    assert "second goes on" in output.getvalue()


def rich(output: io.StringIO) -> RichTerminal:
    console = Console(file=output, force_terminal=True, color_system="truecolor", width=60, height=20, highlight=False)
    return RichTerminal(console, markdown=True)


def test_marks_of_footnotes_are_text_with_links() -> None:
    output = io.StringIO()
    terminal = rich(output)
    terminal.begin_answer()
    terminal.write("**Penguins")
    terminal.mark(Footnote(1, Source("document", "a", 0, {"url": "https://example.org/p"})))
    terminal.write("**(tall)\n```\ncode")
    terminal.mark(Footnote(2, Source("document", "b", 1, {})))
    terminal.end_answer(stopped=True)
    screen = ScreenStandIn(60, 20)
    screen.feed(output.getvalue())
    assert screen.text == "model>\nPenguins[1](tall)\n\ncode[2]\n[stopped]"
    assert "https://example.org/p" in output.getvalue()


def test_what_a_model_writes_in_markdown_cannot_steer_the_terminal() -> None:
    output = io.StringIO()
    terminal = rich(output)
    terminal.write("[red]a[/red]\x1b]0;title\x07\x9b31m\x08 [b](http://x.org/\x1b[2J) <script> ![i](file:///etc) ")
    terminal.write("```\n\x1b[2J\n```")
    terminal.end_answer(stopped=False)
    screen = ScreenStandIn(60, 20)
    screen.feed(output.getvalue())
    assert screen.unknown == []
    assert "\x1b]0" not in output.getvalue()
    assert "\x1b]8" not in output.getvalue()  # no link that hides where it leads
    for text in ("[red]a[/red]]0;title31m", "b (http://x.org/%5B2J)", "<script>"):
        assert text in screen.text.replace("\n", "")


def test_plain_text_where_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert can_draw(Console(file=io.StringIO(), force_terminal=True))
    assert not can_draw(Console(file=io.StringIO()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not can_draw(Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(Console(file=io.StringIO(), force_terminal=True))
