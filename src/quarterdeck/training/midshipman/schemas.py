"""What documents say about invented things: kinds of things, their attributes, and the wordings of both.

The texts are texts/schemas.txt and texts/attributes.txt. Held out are the schemas marked there, and one question
wording in six, chosen by a checksum of its text: the split is a matter of names, and never of chance. What is trained
on anywhere is held out nowhere: neither a wording that another attribute shares, nor a property that is an attribute.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache

from quarterdeck.training.midshipman.grammar import Block, blocks, expanded, options, text_lines, word_lists

HELD_OUT_EVERY = 6
TWO_STEP_NOUNS = (
    ("person", "captain"),
    ("person", "owner"),
    ("company", "maker"),
    ("town", "home port"),
    ("person", "director"),
    ("code", "serial number"),
    ("hotel", "hotel"),
)
"""What is looked up first where two lookups are needed: kind of value, noun."""


def is_held_out(text: str, every: int = HELD_OUT_EVERY) -> bool:
    """Whether a wording or a name belongs to the evaluation: one in `every`, by checksum."""
    return zlib.crc32(text.encode()) % every == 0


@dataclass(frozen=True)
class Attribute:
    """A property. ``statements`` have ``<e>`` and ``<v>``, ``questions`` have ``<e>``.

    Attributes:
        key: its name.
        kind: of value, as `Inventor.value` takes it.
        statements: concrete wordings, spread out.
        questions: those to train on.
        held_out_questions: those for the evaluation.
    """

    key: str
    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A kind of thing: how it is named, what it is called, and what is said about it."""

    key: str
    name_kind: str
    words: tuple[str, ...]
    attributes: tuple[str, ...]
    held_out: bool


@cache
def attributes() -> dict[str, Attribute]:
    """All attributes by key."""
    found, kept = {}, {text for block in blocks("attributes.txt") for text in _trained(_wordings(block))}
    for block in blocks("attributes.txt"):
        key, _, kind = (part.strip() for part in block.name.partition(":"))
        statements = tuple(text for line in block.tagged["S"] for text in expanded(line))
        wordings = _wordings(block)
        questions = tuple(text for text in wordings if text in kept)
        found[key] = Attribute(key, kind, statements, questions, tuple(t for t in wordings if t not in kept))
    return found


def _wordings(block: Block) -> list[str]:
    return [text for line in block.tagged["Q"] for one in options(line) for text in expanded(one)]


def _trained(wordings: list[str]) -> list[str]:
    """All but one in six; the first, and at least two."""
    held_out = [text for text in wordings[1:] if is_held_out(text)][: len(wordings) - 2]
    return [text for text in wordings if text not in held_out]


@cache
def trained_attributes() -> frozenset[str]:
    """Keys of the attributes of schemas that are trained on."""
    return frozenset(key for schema in schemas(False) for key in schema.attributes)


def is_unseen(key: str) -> bool:
    """Whether an attribute can be asked for in a way that is never trained on."""
    return key not in trained_attributes() or bool(attributes()[key].held_out_questions)


@cache
def schemas(held_out: bool) -> tuple[Schema, ...]:
    """The schemas to train on, or those held out."""
    found = []
    for line in text_lines("schemas.txt"):
        key, name_kind, words, keys = (part.strip() for part in line.removeprefix("!").split("|"))
        found.append(Schema(key, name_kind, tuple(words.split(",")), tuple(keys.split()), line.startswith("!")))
    return tuple(schema for schema in found if schema.held_out == held_out)


@cache
def properties(held_out: bool) -> tuple[tuple[str, str], ...]:
    """(noun, kind of value) of texts/nouns.txt, to train on or held out."""
    pairs = [(noun, kind) for kind, nouns in word_lists("nouns.txt").items() for noun in nouns]
    return tuple(pair for pair in pairs if (is_held_out(pair[0]) and pair[0] not in _told()) == held_out)


@cache
def _told() -> frozenset[str]:
    """Nouns that attributes of the schemas, or lookups in two steps, are told and asked by."""
    sentences = [text for one in attributes().values() for text in (*one.statements, *one.questions)]
    found = {match[1].lower() for text in sentences for match in re.finditer(r"(?:The|the) ([\w -]+?) of <e>", text)}
    return frozenset(found | {noun for _, noun in TWO_STEP_NOUNS})
