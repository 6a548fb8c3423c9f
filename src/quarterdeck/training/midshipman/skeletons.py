"""What tools are about: the skeletons of texts/tools.txt, and tools that look up one property of one kind of thing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from quarterdeck.training.midshipman.grammar import blocks, expanded, options
from quarterdeck.training.midshipman.invention import Inventor, with_article
from quarterdeck.training.midshipman.schemas import is_held_out, properties

LOOKUP_VERBS = ("get", "find", "look_up", "fetch", "read", "query", "show", "check", "lookup", "retrieve")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a skeleton: slot, type, kind of value, description."""

    slot: str
    type: str
    kind: str
    description: str


@dataclass(frozen=True)
class Skeleton:
    """What a tool is about; see texts/tools.txt."""

    name: str
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    plan: str
    results: tuple[tuple[str, str], ...]
    answer: str


@cache
def skeletons(held_out: bool) -> tuple[Skeleton, ...]:
    """The skeletons to train on, or those held out (one in six, by name)."""
    found = []
    for block in blocks("tools.txt"):
        tagged = block.tagged
        parameters = []
        for one in tagged["P"][0].split(" ; "):
            head, _, description = one.partition(" | ")
            slot, type_, kind = head.split()
            parameters.append(Parameter(slot, type_, kind, description))
        results = tuple(tuple(one.split()) for one in tagged["R"][0].split(" ; "))
        requests = tuple(text for one in options(tagged["U"][0]) for text in expanded(one))
        found.append(
            Skeleton(
                block.name,
                expanded(tagged["D"][0]),
                tuple(parameters),
                requests,
                tagged["L"][0],
                tuple((key, kind) for key, kind in results),
                tagged["A"][0],
            )
        )
    return tuple(one for one in found if is_held_out(one.name, 6) == held_out)


def property_skeleton(inventor: Inventor, held_out: bool) -> Skeleton:
    """A tool that looks up one property of one kind of thing."""
    rng = inventor.rng
    noun, kind = rng.choice(properties(held_out))
    name_kind, thing = rng.choice(
        (
            ("ship", "ship"),
            ("person", "person"),
            ("town", "town"),
            ("company", "company"),
            ("gadget", "product"),
            ("museum", "museum"),
            ("project", "project"),
            ("hotel", "hotel"),
            ("code", "order"),
            ("package", "package"),
            ("team", "team"),
            ("planet", "planet"),
        )
    )
    slug = re.sub(r"[^a-z]+", "_", noun.lower())
    described = (
        f"Looks up the {noun} of {with_article(thing)}.",
        f"Returns the {noun} of {with_article(thing)}.",
        f"Finds the {noun}.",
        f"The {noun} of {with_article(thing)}.",
    )
    parameter = Parameter(
        thing, "str", name_kind, rng.choice((f"Name of the {thing}.", f"The {thing}.", f"Which {thing}."))
    )
    requests = (
        f"What is the {noun} of <{thing}>?",
        f"Tell me the {noun} of <{thing}>.",
        f"Look up the {noun} of <{thing}>.",
        f"I need the {noun} of <{thing}>.",
        f"Find the {noun} of <{thing}>.",
    )
    name = f"{rng.choice(LOOKUP_VERBS)}_{slug}"
    return Skeleton(
        name,
        described,
        (parameter,),
        requests,
        f"look up the {noun} of <{thing}>",
        ((slug, kind),),
        f"The {noun} of <{thing}> is <{slug}>.",
    )
