r"""Regular expressions for free text in which certain things do not occur.

"Without" is spelled out, character by character, in place of a negation: a line that does not begin with ``Ab:`` is

    [^A\n][^\n]* | A[^b\n][^\n]* | Ab[^:\n][^\n]* | (nothing) | A | Ab

Negated expressions would say the same, but their masks take a hundred times longer, since the library finds out what
all tokens of a kind have in common only where the expression shows it.

A citation tag is what begins with ``<co:``, ``<co>``, ``</co:`` or ``</co>``. Tags are kept out by following how far
the text has got on the way to one: ``<``, ``</``, ``<c``, ``</c``, ``<co``, ``</co``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_AGAIN = r"<(\/?(co?)?<)*"
"""The beginning of a tag, after others that came to nothing."""

_ENDED = r"\/?(co?)?"
"""What may follow the beginning of a tag at the end of a text."""


WHITE_SPACE = r"\s\x1c-\x1f"
"""What `str.strip` takes off, for use in brackets."""


Tree = dict[str, Any]
"""Characters, each with the tree of what follows it."""


@dataclass(frozen=True)
class Characters:
    """Text of one kind.

    Attributes:
        lines: whether it may have line breaks.
        tags: whether it may have citation tags.
        most: characters at most, counted where a line does not begin like a marker; None is no limit.
    """

    lines: bool = False
    tags: bool = True
    most: int | None = None

    def one(self, without: str = "") -> str:
        """A character, none of ``without`` (which has no ``<``); or a tag's beginning, up to what makes it none."""
        newline = "" if self.lines else r"\n"
        plain = rf"[^{without}{newline}]" if without or newline else r"(?s:.)"
        if self.tags:
            return plain
        plain = rf"[^<{without}{newline}]"
        failed = rf"[^<\/c{newline}]|\/[^<c{newline}]|\/?c[^<o{newline}]|\/?co[^<:>{newline}]"
        return f"({plain}|{_AGAIN}({failed}))"

    def all(self) -> str:
        """Any number of them."""
        return f"{self.one()}{'*' if self.most is None else f'{{0,{self.most}}}'}"

    def end(self) -> str:
        """What a text may end with after them: the beginning of a tag."""
        return "" if self.tags else f"({_AGAIN}{_ENDED})?"

    def line(self, markers: Iterable[str]) -> str:
        """A line, without its break, that begins with none of the markers."""
        rest, others = self._line(_tree(markers), "")
        return "|".join([f"({rest})?{self.end()}", *others])

    def filled_line(self, markers: Iterable[str]) -> str:
        """The same, not empty and without white space at its beginning."""
        rest, others = self._line(_tree(markers), WHITE_SPACE)
        begun = [] if self.tags else [_AGAIN + _ENDED]
        return "|".join([f"{rest}{self.end()}", *begun, *others])

    def _line(self, tree: Tree, without: str) -> tuple[str, list[str]]:
        """A line that leaves the markers at its first character, and those that go on with them."""
        others = [
            f"{_escaped(first)}({'|'.join([f'({rest})?{self.end()}', *deeper])})"
            for first, inner in tree.items()
            if inner
            for rest, deeper in [self._line(inner, "")]
        ]
        return f"{self.one(without + ''.join(sorted(tree)))}{self.all()}", others


def without(tokens: Iterable[str]) -> str:
    """Any text in which none of the tokens occurs; each begins with ``<``, the only one it has."""
    tree = _tree(token[1:] for token in tokens)
    begun, failed = _begun(tree), _failed(tree)
    return f"([^<]|<({begun}<)*({failed}))*(<({begun}<)*{begun})?"


def _begun(tree: Tree) -> str:
    """Any beginning of what a tree has, also an empty one; never the whole."""
    inner = "|".join(f"{_escaped(first)}{_begun(rest)}" for first, rest in tree.items() if rest)
    return f"({inner})?" if inner else ""


def _failed(tree: Tree) -> str:
    """A beginning of what a tree has, and the character that it does not go on with."""
    here = f"[^<{''.join(map(_escaped, tree))}]"
    return "|".join([here, *(f"{_escaped(first)}({_failed(rest)})" for first, rest in tree.items() if rest)])


def _tree(markers: Iterable[str]) -> Tree:
    """What may follow each beginning of a marker; nothing follows a whole one."""
    tree: Tree = {}
    for marker in markers:
        branch = tree
        for character in marker:
            branch = branch.setdefault(character, {})
    return tree


def tag(slash: str, numbers: str) -> str:
    """An opening or closing tag, with what began like one right before it."""
    return rf"{_AGAIN}{slash}co: {numbers}>"


def visible(text: Characters) -> str:
    """Text in which there is something to see, before a tag."""
    return f"[{WHITE_SPACE}]*{text.one(WHITE_SPACE)}{text.all()}"


def _escaped(character: str) -> str:
    return character if character.isalnum() else rf"\x{ord(character):02x}"
