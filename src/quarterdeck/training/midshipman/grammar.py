"""Phrase files (`texts/*.txt`): wordings written once, spun into many sentences.

A phrase file holds blocks that begin with `== name`. Within a line, `{a|b|c}` is one of several wordings (braces may
nest), `<slot>` a word from texts/words.txt that stays the same throughout one document, and a leading `~` marks a
sentence that may be left out. A line that begins with a capital letter, a colon and a blank is tagged by the letter.
The same seed always gives the same documents.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<(\w+)>")
_TAGGED = re.compile(r"[A-Z]: ")


@dataclass
class Block:
    """One block of a phrase file: plain lines, and lines by tag."""

    name: str
    lines: list[str] = field(default_factory=list)
    tagged: dict[str, list[str]] = field(default_factory=dict)


@cache
def text_lines(filename: str) -> tuple[str, ...]:
    """The lines of a file in texts/, without empty ones and comments."""
    path = resources.files("quarterdeck.training.midshipman").joinpath("texts", filename)
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


@cache
def blocks(filename: str) -> tuple[Block, ...]:
    """The blocks of a phrase file, in order."""
    found: list[Block] = []
    for line in text_lines(filename):
        if line.startswith("== "):
            found.append(Block(line[3:]))
        elif _TAGGED.match(line):
            found[-1].tagged.setdefault(line[0], []).append(line[3:])
        else:
            found[-1].lines.append(line)
    return tuple(found)


@cache
def word_lists(filename: str) -> dict[str, tuple[str, ...]]:
    """A file of `name: word, word` lines."""
    pairs = (line.partition(":") for line in text_lines(filename))
    return {name: tuple(word.strip() for word in rest.split(",")) for name, _, rest in pairs}


def words() -> dict[str, tuple[str, ...]]:
    """Slot name -> words that may fill it."""
    return word_lists("words.txt")


@cache
def expanded(line: str) -> tuple[str, ...]:
    """All wordings of a line, slots left as they are.

    >>> expanded("{a|b} <e>.")
    ('a <e>.', 'b <e>.')
    """
    match = _INNERMOST.search(line)
    if match is None:
        return (re.sub(r"\s+", " ", line).replace(" .", ".").replace(" ?", "?").replace(" ,", ",").strip(),)
    begin, end = line[: match.start()], line[match.end() :]
    return tuple(dict.fromkeys(text for one in match[1].split("|") for text in expanded(begin + one + end)))


def spin(line: str, rng: random.Random, slots: dict[str, str] | None = None) -> str:
    """One wording of `line`, with its slots filled from `slots` (new fillings are added to it)."""
    filled = {} if slots is None else slots
    while _INNERMOST.search(line):
        line = _INNERMOST.sub(lambda m: rng.choice(m.group(1).split("|")), line)
    for name in _SLOT.findall(line):
        filled.setdefault(name, rng.choice(words()[name]))
    line = _SLOT.sub(lambda m: filled[m.group(1)], line)
    line = re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s+", " ", line)).strip()
    line = line.replace('?,"', '?"')
    return line[:1].upper() + line[1:]


def options(text: str) -> list[str]:
    """`a | b | c` as a list."""
    return [part.strip() for part in text.split(" | ")]


def explanation(block: Block, rng: random.Random, most: int = 99) -> str:
    """A topic's sentences in order, at most `most` of them; optional ones come three times in five."""
    kept = [line.lstrip("~ ") for line in block.lines if not line.startswith("~") or rng.random() < 0.6]
    return " ".join(spin(line, rng) for line in kept[:most])


def story(block: Block, rng: random.Random) -> str:
    """One telling of a story frame."""
    slots: dict[str, str] = {}
    return " ".join(spin(line, rng, slots) for line in block.lines)
