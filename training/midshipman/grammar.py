"""Our own texts: explanations, stories and small talk, spun from the phrase files in `texts/`.

A phrase file holds blocks that begin with `== name`. Within a line, `{a|b|c}` is one of several wordings (braces may
nest), `<slot>` a word from texts/words.txt that stays the same throughout one document, and a leading `~` marks a
sentence that may be left out. The same seed always gives the same documents.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

TEXTS = Path(__file__).resolve().parent / "texts"
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<(\w+)>")


@dataclass
class Block:
    """One block of a phrase file: plain lines, and the lines tagged `Q`, `U` or `A`."""

    name: str
    lines: list[str] = field(default_factory=list)
    tagged: dict[str, list[str]] = field(default_factory=dict)


@cache
def blocks(filename: str) -> tuple[Block, ...]:
    """The blocks of a phrase file, in order."""
    found: list[Block] = []
    for line in (TEXTS / filename).read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            found.append(Block(line[3:]))
        elif re.match(r"[QUA]: ", line):
            found[-1].tagged.setdefault(line[0], []).append(line[3:])
        elif line and not line.startswith("#"):
            found[-1].lines.append(line)
    return tuple(found)


@cache
def words() -> dict[str, tuple[str, ...]]:
    """Slot name -> words that may fill it."""
    lines = (TEXTS / "words.txt").read_text(encoding="utf-8").splitlines()
    return {name: tuple(w.strip() for w in rest.split(",")) for name, _, rest in (x.partition(":") for x in lines)}


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


def explanation(block: Block, rng: random.Random, most: int = 99) -> str:
    """A topic's sentences in order, at most `most` of them; optional ones come three times in five."""
    kept = [line.lstrip("~ ") for line in block.lines if not line.startswith("~") or rng.random() < 0.6]
    return " ".join(spin(line, rng) for line in kept[:most])


def story(block: Block, rng: random.Random) -> str:
    """One telling of a story frame."""
    slots: dict[str, str] = {}
    return " ".join(spin(line, rng, slots) for line in block.lines)


def options(text: str) -> list[str]:
    """`a | b | c` as a list."""
    return [part.strip() for part in text.split(" | ")]


def explanations(count: int, seed: int) -> Iterator[str]:
    """`count` documents of one or two topics each."""
    rng = random.Random(f"explanations {seed}")
    topics = blocks("topics.txt")
    for _ in range(count):
        chosen = rng.sample(topics, 2 if rng.random() < 0.4 else 1)
        yield "\n".join(explanation(block, rng) for block in chosen)


def stories(count: int, seed: int) -> Iterator[str]:
    """`count` short stories."""
    rng = random.Random(f"stories {seed}")
    frames = blocks("stories.txt")
    for _ in range(count):
        yield story(rng.choice(frames), rng)
