"""Grounded questions about invented things: schemas, single properties, false facts about real places.

Documents are short texts about one thing each; the others are about things of the same kind with the same attributes
(hard to tell apart), or about something else. One question in eight has no answer in them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quarterdeck.training.midshipman.answers import (
    Question,
    Statement,
    capitalised,
    loosened,
    make_document,
    named,
    shuffled,
    statement,
)
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.schemas import (
    Attribute,
    Schema,
    attributes,
    is_unseen,
    properties,
    schemas,
)

_PEOPLE = {"employee", "artist", "neighbour"}


@dataclass(frozen=True)
class Fact:
    """What is so: a template with ``<e>`` and ``<v>``, and the value."""

    attribute: Attribute
    template: str
    value: str

    def asked(self, rng: random.Random, held_out: bool) -> str:
        """A question for it, with ``<e>``."""
        wordings = self.attribute.held_out_questions if held_out else self.attribute.questions
        return rng.choice(wordings or self.attribute.questions)


@dataclass(frozen=True)
class Thing:
    """Something invented and all that is known about it."""

    schema: str
    words: tuple[str, ...]
    name: str
    facts: tuple[Fact, ...]


def make_thing(schema: Schema, inventor: Inventor, keys: Sequence[str] | None = None) -> Thing:
    """A thing of a schema with all its attributes, or those in `keys`."""
    facts = []
    for key in keys or schema.attributes:
        attribute = attributes()[key]
        facts.append(Fact(attribute, inventor.rng.choice(attribute.statements), inventor.value(attribute.kind)))
    return Thing(schema.key, schema.words, inventor.value(schema.name_kind), tuple(facts))


def with_names_of_their_own(things: Sequence[Thing]) -> list[Thing]:
    """One of the things for each name: among the documents of a question, a name means one thing."""
    return list({thing.name: thing for thing in things}.values())


def describe(thing: Thing, facts: Sequence[Fact], rng: random.Random) -> str:
    """A short text: the facts in order, the later ones often with a pronoun, the same for one person."""
    opening, word, pronouns = rng.random(), rng.choice(thing.words), pronouns_for(thing, rng)
    sentences = []
    if opening < 0.35:
        article = "an" if word[0] in "aeiou" else "a"
        sentences.append(f"{capitalised(thing.name)} is {article} {word}.")
    elif opening < 0.4:
        sentences.append(f"This is a note about {named('<e>', thing.name, False)}.")
    for fact in facts:
        with_pronoun = bool(sentences) and rng.random() < 0.55
        sentences.append(sentence_of(thing, fact, rng.choice(pronouns) if with_pronoun else None))
    return " ".join(sentences)


def pronouns_for(thing: Thing, rng: random.Random) -> tuple[str, ...]:
    """What may stand for a thing in the next sentences of a text."""
    if thing.schema in _PEOPLE:
        return (rng.choice(("He", "She")),)
    return ("It", "It", f"The {thing.words[0].split()[-1]}")


def sentence_of(thing: Thing, fact: Fact, pronoun: str | None = None) -> str:
    """The sentence of a fact, with a pronoun where one is given and the sentence begins with the name."""
    if pronoun is not None and fact.template.startswith("<e> "):
        return pronoun + fact.template[3:].replace("<v>", fact.value)
    return statement(fact.template, thing.name, fact.value, ()).plain


def answer_of(thing: Thing, fact: Fact, sources: Sequence[int]) -> Statement:
    """The sentence that answers a question for a fact."""
    return statement(fact.template, thing.name, fact.value, sources)


def _title(thing: Thing, rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.7:
        return capitalised(thing.name)
    if roll < 0.85:
        return f"About {named('<e>', thing.name, False)}"
    return rng.choice(
        ("Notes", f"{capitalised(thing.words[0])}", f"{capitalised(thing.words[0])}: {thing.name}", "Archive")
    )


class SchemaQuestions:
    """Questions about things of the schemas.

    Args:
        held_out_schemas: ask about those that are never trained on.
        held_out_wordings: ask in wordings that are never trained on.
    """

    def __init__(self, *, held_out_schemas: bool = False, held_out_wordings: bool = False) -> None:
        self._schemas = schemas(held_out_schemas)
        self._wordings = held_out_wordings

    def question(self, inventor: Inventor, kind: str | None = None) -> Question:
        """One question with its documents; `kind` is one of ``KINDS``, or drawn."""
        rng = inventor.rng
        schema = rng.choice(self._schemas)
        shared = self._some(schema, rng)
        things = [make_thing(schema, inventor, shared) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5)))]
        if rng.random() < 0.35:
            other = rng.choice(self._schemas)
            things.append(make_thing(other, inventor, rng.sample(other.attributes, min(3, len(other.attributes)))))
        things = with_names_of_their_own(things)
        chosen = kind or rng.choices(tuple(KINDS), weights=tuple(weight for weight, _ in KINDS.values()))[0]
        return KINDS[chosen][1](self, things, inventor)

    def _some(self, schema: Schema, rng: random.Random) -> list[str]:
        """Some of the attributes; one at least that can be asked for."""
        keys = rng.sample(schema.attributes, min(len(schema.attributes), rng.choice((1, 2, 3, 3, 4, 5))))
        if self._wordings and not any(map(is_unseen, keys)):
            keys[0] = rng.choice([key for key in schema.attributes if is_unseen(key)])
        return keys

    def _fact(self, facts: Sequence[Fact], rng: random.Random) -> Fact:
        """What is asked for: where wordings are held out, one that is not trained on in the wordings it has."""
        unseen = [fact for fact in facts if is_unseen(fact.attribute.key)] if self._wordings else []
        return rng.choice(unseen or facts)

    def _documents(self, things: Sequence[Thing], inventor: Inventor) -> list[tuple[str, str]]:
        return [(_title(thing, inventor.rng), describe(thing, thing.facts, inventor.rng)) for thing in things]

    def _single(self, things: list[Thing], inventor: Inventor) -> Question:
        rng = inventor.rng
        target, fact = things[0], self._fact(things[0].facts, rng)
        texts = self._documents(things, inventor)
        holders = [0]
        if rng.random() < 0.1:  # the same fact in a second document, in the same words
            texts.append((_title(target, rng), sentence_of(target, fact)))
            holders.append(len(texts) - 1)
        documents, places = shuffled([make_document(*text, inventor) for text in texts], rng)
        asked = named(fact.asked(rng, self._wordings), target.name, True)
        answer = answer_of(target, fact, [places[n] for n in holders])
        return Question(loosened(asked, rng), documents, (answer,), about=self._about(target, fact, things))

    def _about(self, thing: Thing, fact: Fact, things: Sequence[Thing]) -> dict[str, object]:
        same = [f.value for t in things for f in t.facts if f.attribute is fact.attribute]
        rivals = [value for value in (*same, *(f.value for f in thing.facts)) if value != fact.value]
        return {"schema": thing.schema, "attribute": fact.attribute.key, "rivals": rivals}

    def _split(self, things: list[Thing], inventor: Inventor) -> Question:
        """Two documents about the same thing, with a part of the facts each."""
        rng, target = inventor.rng, things[0]
        if len(target.facts) < 2:
            return self._single(things, inventor)
        texts = self._documents(things[1:], inventor)
        half = rng.randint(1, len(target.facts) - 1)
        parts = (target.facts[:half], target.facts[half:])
        both = [
            (capitalised(target.name), describe(Thing(target.schema, target.words, target.name, p), p, rng))
            for p in parts
        ]
        documents, places = shuffled([make_document(*text, inventor) for text in (*both, *texts)], rng)
        fact = self._fact(target.facts, rng)
        which = 0 if fact in parts[0] else 1
        asked = named(fact.asked(rng, self._wordings), target.name, True)
        answer = answer_of(target, fact, [places[which]])
        about = self._about(target, fact, things)
        return Question(loosened(asked, rng), documents, (answer,), frozenset(places[:2]), about)

    def _reverse(self, things: list[Thing], inventor: Inventor) -> Question:
        """Which thing has this value?"""
        rng, target = inventor.rng, things[0]
        elsewhere = {(fact.attribute.key, fact.value) for thing in things[1:] for fact in thing.facts}
        facts = [
            f for f in target.facts if f.template.startswith("<e> ") and (f.attribute.key, f.value) not in elsewhere
        ]
        if not facts or target.schema in _PEOPLE:
            return self._single(things, inventor)
        fact = rng.choice(facts)
        documents, places = shuffled([make_document(*t, inventor) for t in self._documents(things, inventor)], rng)
        predicate = fact.template[4:].rstrip(".").replace("<v>", fact.value).replace("<e>", "it")
        asked = f"Which {target.words[0]} {predicate}?"
        answer = Statement(((capitalised(target.name), (places[0],)), (f" {predicate}.", ())))
        about = {**self._about(target, fact, things), "rivals": [thing.name for thing in things[1:]]}
        return Question(loosened(asked, rng), documents, (answer,), about=about)

    def _pair(self, things: list[Thing], inventor: Inventor) -> Question:
        """Two questions at once: two facts of one thing, or one attribute of two things."""
        rng, target = inventor.rng, things[0]
        second, fact = target, target.facts[0]
        other = target.facts[-1]
        if len(target.facts) < 2:
            if len(things) < 2 or len(things[1].facts) < 1:
                return self._single(things, inventor)
            second, other = things[1], things[1].facts[0]
        documents, places = shuffled([make_document(*t, inventor) for t in self._documents(things, inventor)], rng)
        first = named(fact.asked(rng, self._wordings), target.name, True).rstrip("?")
        last = named(other.asked(rng, self._wordings), second.name, True)
        answers = (
            answer_of(target, fact, [places[0]]),
            answer_of(second, other, [places[0 if second is target else 1]]),
        )
        asked = f"{first} and {last[0].lower()}{last[1:]}"
        return Question(asked, documents, answers, about=self._about(target, fact, things))

    def _tell(self, things: list[Thing], inventor: Inventor) -> Question:
        """Tell me about it: the first facts of its document."""
        rng, target = inventor.rng, things[0]
        documents, places = shuffled([make_document(*t, inventor) for t in self._documents(things, inventor)], rng)
        form = rng.choice(
            (
                "Tell me about <e>.",
                "What do you know about <e>?",
                "What do the documents say about <e>?",
                "Give me some information about <e>.",
            )
        )
        answers = tuple(answer_of(target, fact, [places[0]]) for fact in target.facts[:3])
        return Question(
            named(form, target.name, True), documents, answers, about=self._about(target, target.facts[0], things)
        )

    def _missing(self, things: list[Thing], inventor: Inventor) -> Question:
        """The attribute is not there, or the thing is not."""
        rng = inventor.rng
        fact = self._fact(things[0].facts, rng)
        if rng.random() < 0.5 and len(things) > 1:
            kept = things[1:]
        else:
            rest = tuple(one for one in things[0].facts if one.attribute is not fact.attribute)
            if not rest:
                return self._missing([things[0], make_thing(rng.choice(self._schemas), inventor)], inventor)
            kept = [Thing(things[0].schema, things[0].words, things[0].name, rest), *things[1:]]
        documents, _ = shuffled([make_document(*t, inventor) for t in self._documents(kept, inventor)], rng)
        asked = named(fact.asked(rng, self._wordings), things[0].name, True)
        return Question(loosened(asked, rng), documents, (), about={"schema": things[0].schema, "unanswerable": True})


_Maker = Callable[[SchemaQuestions, list[Thing], Inventor], Question]
KINDS: dict[str, tuple[int, _Maker]] = {
    "single": (54, SchemaQuestions._single),
    "split": (10, SchemaQuestions._split),
    "reverse": (9, SchemaQuestions._reverse),
    "pair": (7, SchemaQuestions._pair),
    "tell": (6, SchemaQuestions._tell),
    "missing": (14, SchemaQuestions._missing),
}

_PROPERTY_STATEMENTS = (
    "The <n> of <e> is <v>.",
    "The <n> of <e> is <v>.",
    "<e> has <v> as its <n>.",
    "As for <e>, the <n> is <v>.",
    "<e>'s <n> is <v>.",
    "<v> is the <n> of <e>.",
)
_PROPERTY_QUESTIONS = (
    "What is the <n> of <e>?",
    "What is the <n> of <e>?",
    "What is <e>'s <n>?",
    "Tell me the <n> of <e>.",
    "Do you know the <n> of <e>?",
    "Which <n> does <e> have?",
    "I need the <n> of <e>.",
    "<e>: what is the <n>?",
    "Find the <n> of <e>.",
    "Give me the <n> of <e>, please.",
)
_WHO = ("Who is the <n> of <e>?", "Who is <e>'s <n>?")
_NAME_KINDS = (
    "town",
    "ship",
    "person",
    "company",
    "museum",
    "gadget",
    "book",
    "team",
    "island",
    "package",
    "project",
    "house",
    "box",
    "pet_name",
    "course",
    "first",
    "animal_name",
    "code",
    "hotel",
    "farm",
    "order",
    "train",
)
_COUNTRIES = (
    "France Germany Italy Spain Japan China Egypt Brazil Canada Norway Kenya India Peru Chile Greece Turkey Poland "
    "Mexico Cuba Iran Ghana Nepal Ireland Portugal"
).split()
_KNOWN = (
    ("capital", "town"),
    ("national animal", "animal"),
    ("main export", "product"),
    ("largest city", "town"),
    ("president", "person"),
    ("currency", "name"),
    ("population", "count_large"),
)


def property_question(inventor: Inventor, *, held_out: bool = False) -> Question:
    """One property of one thing among others: "What is the <noun> of <thing>?"."""
    rng = inventor.rng
    name_kind = rng.choice(_NAME_KINDS)
    nouns = rng.sample(properties(held_out), rng.choice((1, 2, 2, 3)))
    names = list(dict.fromkeys(inventor.value(name_kind) for _ in range(rng.choice((1, 2, 3, 3, 4)))))
    if not held_out and rng.random() < 0.1:  # what everybody knows is not so here
        names = rng.sample(_COUNTRIES, len(names))
        nouns = [rng.choice(_KNOWN)]
    facts = [
        [(rng.choice(_PROPERTY_STATEMENTS).replace("<n>", noun), inventor.value(kind)) for noun, kind in nouns]
        for _ in names
    ]
    texts = []
    for name, rows in zip(names, facts, strict=True):
        text = " ".join(statement(template, name, value, ()).plain for template, value in rows)
        texts.append((capitalised(name) if rng.random() < 0.7 else "Notes", text))
    if rng.random() < 0.25:  # all in one text
        texts = [("Overview", " ".join(text for _, text in texts))]
    documents, places = shuffled([make_document(*text, inventor) for text in texts], rng)
    which = rng.randrange(len(nouns))
    noun, kind = nouns[which]
    forms = _WHO if kind == "person" and rng.random() < 0.7 else _PROPERTY_QUESTIONS
    asked = named(rng.choice(forms).replace("<n>", noun), names[0], True)
    template, value = facts[0][which]
    about = {"property": noun, "rivals": [v for row in facts[1:] for _, v in row if v != value]}
    return Question(loosened(asked, rng), documents, (statement(template, names[0], value, (places[0],)),), about=about)
