"""Drills: one choice that is hard to learn, again and again, in little text.

Which document is a question about? Its number is asked for before anything else is said, so the question, the name in
the document and the document's number have to be matched at once; a prompt of the product has one such choice in 300
tokens and more. Which sentence answers, and which tool serves? Here one set of documents or tools has many questions,
without preamble and instructions: a choice every 20 to 150 tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from quarterdeck.chat.messages import Document, Message, Tool
from quarterdeck.chat.template import CitationMode, render
from quarterdeck.training.midshipman.answers import capitalised, completion, named, shuffled
from quarterdeck.training.midshipman.described import verbs
from quarterdeck.training.midshipman.example import BOS, END_OF_TURN, Example, Segment, compacted
from quarterdeck.training.midshipman.grammar import word_lists
from quarterdeck.training.midshipman.grounded import (
    Fact,
    Thing,
    answer_of,
    make_thing,
    pronouns_for,
    sentence_of,
    with_names_of_their_own,
)
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.schemas import schemas
from quarterdeck.training.midshipman.tooling import (
    ShownTool,
    ToolExamples,
    calls_action,
    planned_action,
    purpose_of,
    show_tool,
    use_tool,
)

_MODES: tuple[CitationMode, ...] = ("off", "off", "fast")
BY_NAME = 0.3
"""How many of the lookups are asked for by the name alone, the easiest form."""
_ASKED = (
    "{}?",
    "I need the {}.",
    "What about the {}?",
    "Please see to the {}.",
    "Can you help with the {}?",
    "The {}, please.",
    "Do something about the {} today.",
    "There is a question about the {}.",
)
_COMMON = frozenset(
    "the and for how who are its not out with from that this which what there near into their when have than".split()
)
"""Words of three letters and more that say nothing of what a tool is for."""
_LETTERS = re.compile(r"[^\W\d_]+")


def find_document(inventor: Inventor) -> Example:
    """A question, two to five short documents about things of one kind, and the number of the right one."""
    rng = inventor.rng
    things = _things(inventor)
    titles_only = rng.random() < 0.35
    documents, places = shuffled([_document(thing, titles_only, rng) for thing in things], rng)
    target = things[0]
    fact = rng.choice(target.facts)
    text = completion((answer_of(target, fact, [places[0]]),), [places[0]], "fast")
    if titles_only or rng.random() < 0.3:
        text = _numbers(text)
    question = Message("user", _question(target, fact, rng))
    about = {"names": [target.name]}
    return Example("find", (question,), text, documents=documents, citation_mode="fast", about=about, bare=True)


def find_documents(inventor: Inventor) -> Example:
    """The documents, and then which of them each of many questions, or each of many names, is about."""
    rng = inventor.rng
    things = _things(inventor)
    documents, places = shuffled([_document(thing, rng.random() < 0.2, rng) for thing in things], rng)
    asked = rng.sample(list(zip(things, places, strict=True)) * 2, 2 * len(things))[: rng.randint(4, 10)]
    said = _results(documents)
    if rng.random() < BY_NAME:
        for thing, place in asked:
            said += [("text", f"{capitalised(thing.name)}:", False), ("text", f" {place}\n", True)]
        said.append(("control", END_OF_TURN, True))
    else:
        for thing, place in asked:
            fact = rng.choice(thing.facts)
            numbers = _numbers(completion((answer_of(thing, fact, [place]),), [place], "fast"))
            said += _exchange(_question(thing, fact, rng), numbers)
    return Example("find_many", (), "", about={"names": [thing.name for thing, _ in asked]}, written_out=tuple(said))


def find_newest(inventor: Inventor) -> Example:
    """As `find_documents`, but documents arrive in between: mostly after the question that they answer."""
    rng = inventor.rng
    things = _things(inventor, (3, 4, 5, 6))
    documents, places = shuffled([_document(thing, rng.random() < 0.2, rng) for thing in things], rng)
    by_place = [thing for _, thing in sorted(zip(places, things, strict=True), key=lambda pair: pair[0])]
    blocks = _results_text(documents).removeprefix("<results>\n").removesuffix("\n</results>").split("\n\n")
    said: list[Segment] = [("control", BOS, False)]
    names: list[str] = []
    shown = 0
    while shown < len(blocks) or len(names) < 4:
        more = min(len(blocks) - shown, rng.choice((1, 2, 2, 3)) if not shown or rng.random() < 0.7 else 0)
        first = shown if more and rng.random() < 0.7 else 0
        place = rng.randrange(first, shown + more)
        thing = by_place[place]
        fact = rng.choice(thing.facts)
        said += _turn("USER", _question(thing, fact, rng))
        if more:
            said += _turn("SYSTEM", "<results>\n" + "\n\n".join(blocks[shown : shown + more]) + "\n</results>")
        if rng.random() < 0.4:
            said += _turn("SYSTEM", "Relevant Documents:\nCited Documents:\nAnswer:\nGrounded answer:")
        numbers = _numbers(completion((answer_of(thing, fact, [place]),), [place], "fast"))
        said += _turn("CHATBOT", numbers, supervised=True)
        names.append(thing.name)
        shown += more
    return Example("find_newest", (), "", about={"names": names}, written_out=tuple(said))


def ask_many(inventor: Inventor) -> Example:
    """Documents with several facts each, and then questions for many of them, with their answers."""
    rng = inventor.rng
    things = _things(inventor, (1, 1, 1, 2, 2), facts=(3, 4, 5, 6))
    documents, places = shuffled([_document(thing, False, rng) for thing in things], rng)
    pairs = [(thing, fact, place) for thing, place in zip(things, places, strict=True) for fact in thing.facts]
    said, mode = _results(documents), rng.choice(_MODES)
    for thing, fact, place in rng.sample(pairs, min(8, len(pairs))):
        answer = completion((answer_of(thing, fact, [place]),), [place], mode)
        said += _exchange(_question(thing, fact, rng), answer)
    return Example("ask_many", (), "", written_out=tuple(said))


def find_tools(inventor: Inventor) -> Example:
    """Tools without parameters, and then the names of those that each of many requests, or descriptions, needs.

    A third of the drills ask by a word or two of the description, and half of their tools do random things to random
    things: what a request has to share with a description are words, not a meaning that has been learned.
    """
    rng = inventor.rng
    shown = _shown_tools(inventor, rng.randint(3, 8), odd=0.7)
    form = rng.choices(("description", "words", "request"), (BY_NAME, 0.35, 0.35))[0]
    tools = [replace(one.tool, parameters={}) for one in shown]
    if form == "words":
        tools = [replace(one, description=_of_words(inventor)) if rng.random() < 0.5 else one for one in tools]
    bare = [replace(one, tool=tool) for one, tool in zip(shown, tools, strict=True)]
    said: list[Segment] = [("control", BOS, False), *_turn("SYSTEM", _listed(bare))]
    for one in rng.sample(bare * 2, 2 * len(bare)):
        if form == "description":
            said += [("text", f"{one.tool.description}:", False), ("text", f" {one.tool.name}\n", True)]
            continue
        asked = use_tool(one, inventor).request if form == "request" else _asked_by_words(one.tool, tools, inventor)
        said += _exchange(asked, f'"tool_name": "{one.tool.name}",')
    return Example("find_tools", (), "", written_out=tuple(said))


def call_many(inventor: Inventor) -> Example:
    """Tools, and then requests that they serve, with the calls; in half of the drills these end with the name."""
    rng = inventor.rng
    shown = _shown_tools(inventor, rng.randint(3, 7), odd=0.3)
    said: list[Segment] = [("control", BOS, False), *_turn("SYSTEM", _listed(shown))]
    form = rng.choice(("name", "name", "call", "plan"))
    for one in rng.choices(shown, k=len(shown) + (4 if form == "name" else 1)):
        use = use_tool(one, inventor)
        text = calls_action([use.call])
        if form == "plan":
            text = planned_action(use.plan, text)
        elif form == "name":
            text = text[: text.index("\n", text.index('"tool_name"'))]
        said += _exchange(use.request, text)
    return Example("call_many", (), "", written_out=tuple(said))


def _shown_tools(inventor: Inventor, most: int, odd: float) -> list[ShownTool]:
    """Tools for different purposes; that part of them under names that say nothing of what they are for."""
    shown: dict[str, ShownTool] = {}
    purposes: set[str] = set()
    for _ in range(most):
        one = show_tool(ToolExamples().skeleton(inventor), inventor)
        if inventor.rng.random() < odd:
            one = _oddly_named(one, inventor)
        purpose = purpose_of(one.skeleton.plan)
        if purpose not in purposes and one.tool.name not in shown:
            purposes.add(purpose)
            shown[one.tool.name] = one
    return list(shown.values())


def _oddly_named(shown: ShownTool, inventor: Inventor) -> ShownTool:
    """The tool and its parameters under names of unrelated words: they can be copied, but not guessed."""
    taken = shown.tool.parameters["properties"]
    odd = dict.fromkeys(_odd_name(inventor, (1, 1, 2)) for _ in range(4 * len(taken)))
    renamed = dict(zip(taken, odd, strict=False))
    properties = {renamed[name]: schema for name, schema in taken.items()}
    required = [renamed[name] for name in shown.tool.parameters["required"]]
    parameters = {**shown.tool.parameters, "properties": properties, "required": required}
    tool = Tool(_odd_name(inventor, (1, 2, 2, 3)), shown.tool.description, parameters)
    return ShownTool(shown.skeleton, tool, {slot: renamed[name] for slot, name in shown.names.items()})


def _odd_name(inventor: Inventor, counts: Sequence[int]) -> str:
    words = inventor.rng.choices(_plain_words(), k=inventor.rng.choice(counts))
    if inventor.rng.random() < 0.2:
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return "_".join(words)


def _of_words(inventor: Inventor) -> str:
    """A description of something that nothing does."""
    rng = inventor.rng
    doing, first, second = rng.choice(verbs(False))[0], *rng.sample(_plain_words(), 2)
    end = "es" if doing.endswith(("s", "sh", "ch", "x", "o")) else "s"
    return f"{doing.capitalize()}{end} the {first} {rng.choice(('of', 'for', 'in', 'with', 'near'))} a {second}."


def _asked_by_words(tool: Tool, tools: Sequence[Tool], inventor: Inventor) -> str:
    """A request that has one or two words of the description of a tool which no other tool has."""
    rng = inventor.rng
    others = {word for other in tools if other is not tool for word in _LETTERS.findall(other.description.lower())}
    verb, *rest = _LETTERS.findall(tool.description)
    words = [word for word in rest if len(word) > 2 and word not in _COMMON and word not in others]
    if verb.endswith("s") and verb.lower() not in others and rng.random() < 0.3:
        return f"{verb.removesuffix('s')} {rng.choice(('it', 'this', 'that', inventor.value('code')))}, please."
    if not words:
        return tool.description
    return rng.choice(_ASKED).format(" ".join(rng.sample(words, min(len(words), rng.choice((1, 1, 2))))))


@cache
def _plain_words() -> tuple[str, ...]:
    """The ordinary words that values are made of."""
    listed = (word for words in word_lists("values.txt").values() for value in words for word in value.split())
    return tuple(sorted({word for word in listed if word.isascii() and word.isalpha() and word.islower()}))


def _listed(shown: Sequence[ShownTool]) -> str:
    """The tools as the product lists them."""
    prompt = render("?", tools=[one.tool for one in shown])
    return next(text for kind, text in compacted(prompt) if kind == "text" and text.startswith("## Available Tools"))


def _results(documents: Sequence[Document]) -> list[Segment]:
    """The beginning: the documents as the product shows them."""
    return [("control", BOS, False), *_turn("SYSTEM", _results_text(documents))]


def _results_text(documents: Sequence[Document]) -> str:
    prompt = render("?", documents=list(documents))
    return next(text for kind, text in prompt.parts if kind == "text" and text.startswith("<results>"))


def _exchange(asked: str, answer: str) -> list[Segment]:
    return [*_turn("USER", asked), *_turn("CHATBOT", answer, supervised=True)]


def _things(
    inventor: Inventor, counts: Sequence[int] = (2, 3, 3, 4, 5), facts: Sequence[int] = (1, 1, 1, 2)
) -> list[Thing]:
    """Things of one kind with the same attributes; how many of both is drawn from `counts` and `facts`."""
    rng = inventor.rng
    schema = rng.choice(schemas(False))
    keys = rng.sample(schema.attributes, min(len(schema.attributes), rng.choice(facts)))
    return with_names_of_their_own([make_thing(schema, inventor, keys) for _ in range(rng.choice(counts))])


def _question(thing: Thing, fact: Fact, rng: random.Random) -> str:
    return named(fact.asked(rng, False), thing.name, True)


def _numbers(completion: str) -> str:
    """Only the lists of documents."""
    return completion[: completion.index("\nGrounded answer:")]


def _turn(role: str, text: str, supervised: bool = False) -> list[Segment]:
    start: list[Segment] = [("control", "<|START_OF_TURN_TOKEN|>", False), ("control", f"<|{role}_TOKEN|>", False)]
    return [*start, ("text", text, supervised), ("control", END_OF_TURN, supervised)]


def _document(thing: Thing, title_only: bool, rng: random.Random) -> Document:
    if title_only:
        return Document({"title": thing.name})
    text = " ".join(_sentences(thing, rng))
    return Document({"text": text} if rng.random() < 0.5 else {"title": thing.name, "text": text})


def _sentences(thing: Thing, rng: random.Random) -> Sequence[str]:
    pronouns = pronouns_for(thing, rng)
    chosen = [rng.choice(pronouns) if n and rng.random() < 0.5 else None for n in range(len(thing.facts))]
    return [sentence_of(thing, fact, pronoun) for fact, pronoun in zip(thing.facts, chosen, strict=True)]
