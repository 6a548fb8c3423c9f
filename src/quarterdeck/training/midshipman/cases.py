"""What the evaluation asks: the same cases for the same seed, from what was never trained on.

    groups = make_groups(scale=1.0, seed=7)      # {"seen": [Example, ...], "held_out": ..., ...}

Schemas, wordings of questions, tools and properties of tools are those held out by name, the natural sentences those
of the Jargon File. Things, values and names are invented anew, and so never seen in any group.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from importlib import resources

from quarterdeck.chat.messages import Message
from quarterdeck.training.midshipman.answers import grounded_example
from quarterdeck.training.midshipman.described import event_question
from quarterdeck.training.midshipman.example import Example
from quarterdeck.training.midshipman.grammar import expanded, options
from quarterdeck.training.midshipman.grounded import SchemaQuestions, property_question
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.languages import grounded_in_language
from quarterdeck.training.midshipman.natural import NaturalQuestions, Passage, read_passages
from quarterdeck.training.midshipman.talk import intents, small_talk
from quarterdeck.training.midshipman.tooling import ToolExamples

SIZES: Mapping[str, int] = {
    "seen": 100,
    "held_out": 100,
    "held_out_properties": 40,
    "held_out_events": 40,
    "natural": 60,
    "unanswerable": 50,
    "calls": 70,
    "calls_single_step": 40,
    "direct": 20,
    "results": 40,
    "two_steps": 30,
    "languages": 27,
    "chat": 60,
}
"""How many cases each group has at scale 1."""


def held_out_passages() -> tuple[Passage, ...]:
    """The corpus that nothing is trained on: passages of the Jargon File."""
    source = resources.files("quarterdeck.training.midshipman").joinpath("held_out.jsonl")
    with resources.as_file(source) as path:
        return read_passages(path)


def make_groups(scale: float = 1.0, seed: int = 7) -> dict[str, list[Example]]:
    """All groups; `scale` makes them larger or smaller, but none empty."""
    makers = _makers()
    groups = {}
    for name, size in SIZES.items():
        inventor = Inventor(random.Random(f"evaluation {seed} {name}"))
        groups[name] = [makers[name](inventor, number) for number in range(max(1, round(size * scale)))]
    return groups


def _makers() -> dict[str, Callable[[Inventor, int], Example]]:
    seen = SchemaQuestions()
    held_out = SchemaQuestions(held_out_schemas=True, held_out_wordings=True)
    natural, tools = NaturalQuestions(held_out_passages()), ToolExamples(held_out=True)
    kinds = ("single", "single", "single", "split")

    def asked(questions: SchemaQuestions) -> Callable[[Inventor, int], Example]:
        return lambda i, n: grounded_example("schema", questions.question(i, kinds[n % 4]), i.rng, "accurate")

    return {
        "seen": asked(seen),
        "held_out": asked(held_out),
        "held_out_properties": lambda i, n: grounded_example(
            "p", property_question(i, held_out=True), i.rng, "accurate"
        ),
        "held_out_events": lambda i, n: grounded_example("e", event_question(i, held_out=True), i.rng, "accurate"),
        "natural": lambda i, n: _answerable(natural, i),
        "unanswerable": lambda i, n: grounded_example(
            "m", (seen, held_out)[n % 2].question(i, "missing"), i.rng, "accurate"
        ),
        "calls": lambda i, n: tools.call(i, multi_step=True),
        "calls_single_step": lambda i, n: tools.call(i, multi_step=False),
        "direct": lambda i, n: tools.directly(i, small_talk(i.rng)[0]),
        "results": lambda i, n: _reported(tools, i),
        "two_steps": lambda i, n: tools.two_steps(i),
        "languages": lambda i, n: grounded_in_language(i),
        "chat": _chat,
    }


def _answerable(natural: NaturalQuestions, inventor: Inventor) -> Example:
    while True:
        question = natural.question(inventor)
        if question.answer:
            return grounded_example("natural", question, inventor.rng, "accurate")


def _reported(tools: ToolExamples, inventor: Inventor) -> Example:
    """Results with something to report: how "done" is put into words, nobody could know."""
    while True:
        example = tools.results(inventor, multi_step=True)
        if example.about["values"] != [example.about["answer"]]:
            return example


def _chat(inventor: Inventor, number: int) -> Example:
    """Each intent in turn; every answer of the intent is right."""
    block = intents()[number % len(intents())]
    asked = inventor.rng.choice(options(inventor.rng.choice(block.tagged["U"])))
    rights = [text[:1].upper() + text[1:] for line in block.tagged["A"] for text in expanded(line)]
    return Example("chat", (Message("user", asked),), rights[0], about={"intent": block.name, "rights": rights})
