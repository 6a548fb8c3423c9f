"""The mixture: which family the next example comes from, and an endless, repeatable stream of examples.

    maker = BatchMaker(folder, seed=1, packer=functools.partial(pack, rows=8, length=1024))
    maker(step=0, progress=0.0)         # the same PackedRows each time

Batch `step` depends on the seed, the step and the progress alone, so any worker can make it, and a run that is
resumed gets the batches that it would have got.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quarterdeck.tokenizer import CohereTokenizerFast
from quarterdeck.training.midshipman import primer
from quarterdeck.training.midshipman.answers import grounded_example
from quarterdeck.training.midshipman.described import event_question, species_question
from quarterdeck.training.midshipman.drills import (
    ask_many,
    call_many,
    find_document,
    find_documents,
    find_newest,
    find_tools,
)
from quarterdeck.training.midshipman.example import Encoded, Example, ExampleEncoder
from quarterdeck.training.midshipman.grammar import blocks, explanation, story
from quarterdeck.training.midshipman.grounded import SchemaQuestions, property_question
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.languages import grounded_in_language, talk_example
from quarterdeck.training.midshipman.natural import NaturalQuestions, Passage, read_passages, summary
from quarterdeck.training.midshipman.talk import Knowledge, conversation, small_talk
from quarterdeck.training.midshipman.tooling import ToolExamples
from quarterdeck.training.packing import Ids, PackedRows, Packer

BOS_ID, END_ID, LAST_ORDINARY = 5, 8164, 8163

STAGES: tuple[tuple[float, Mapping[str, float]], ...] = (
    (
        0.0,
        {
            "repeat": 0.20,
            "table": 0.16,
            "find_many": 0.10,
            "schema": 0.16,
            "property": 0.11,
            "event": 0.05,
            "natural": 0.08,
            "call": 0.05,
            "chat": 0.03,
            "text": 0.06,
        },
    ),
    (
        0.10,
        {
            "repeat": 0.05,
            "table": 0.03,
            "find": 0.10,
            "find_many": 0.45,
            "schema": 0.12,
            "property": 0.08,
            "event": 0.02,
            "natural": 0.05,
            "call": 0.05,
            "chat": 0.02,
            "text": 0.03,
        },
    ),
    (
        0.20,
        {
            "repeat": 0.03,
            "table": 0.02,
            "find": 0.15,
            "find_many": 0.08,
            "find_newest": 0.36,
            "ask_many": 0.08,
            "call_many": 0.05,
            "schema": 0.08,
            "property": 0.05,
            "natural": 0.03,
            "call": 0.04,
            "chat": 0.01,
            "text": 0.02,
        },
    ),
    (
        0.32,
        {
            "repeat": 0.05,
            "table": 0.01,
            "find": 0.05,
            "find_many": 0.02,
            "find_newest": 0.09,
            "find_tools": 0.18,
            "ask_many": 0.22,
            "call_many": 0.12,
            "schema": 0.10,
            "property": 0.04,
            "natural": 0.04,
            "call": 0.04,
            "chat": 0.02,
            "text": 0.02,
        },
    ),
    (
        0.55,
        {
            "repeat": 0.05,
            "table": 0.01,
            "find": 0.03,
            "find_newest": 0.04,
            "find_tools": 0.24,
            "ask_many": 0.20,
            "call_many": 0.16,
            "schema": 0.12,
            "property": 0.03,
            "natural": 0.03,
            "call": 0.06,
            "chat": 0.02,
            "text": 0.01,
        },
    ),
    (
        0.72,
        {
            "repeat": 0.03,
            "table": 0.01,
            "find": 0.02,
            "find_newest": 0.03,
            "find_tools": 0.13,
            "ask_many": 0.15,
            "call_many": 0.19,
            "schema": 0.14,
            "property": 0.03,
            "event": 0.02,
            "species": 0.01,
            "natural": 0.03,
            "summary": 0.01,
            "call": 0.09,
            "two_calls": 0.01,
            "direct": 0.01,
            "results": 0.02,
            "two_steps": 0.01,
            "chat": 0.03,
            "languages": 0.01,
            "text": 0.02,
        },
    ),
    (
        0.92,
        {
            "repeat": 0.02,
            "table": 0.01,
            "find": 0.01,
            "find_newest": 0.01,
            "find_tools": 0.05,
            "ask_many": 0.09,
            "call_many": 0.11,
            "schema": 0.18,
            "property": 0.05,
            "event": 0.04,
            "species": 0.02,
            "natural": 0.05,
            "summary": 0.01,
            "call": 0.16,
            "two_calls": 0.01,
            "direct": 0.02,
            "results": 0.03,
            "two_steps": 0.02,
            "chat": 0.05,
            "languages": 0.03,
            "text": 0.03,
        },
    ),
)
"""Shares of the examples from a progress on; between two stages they change steadily, after the last one no more."""
FAMILIES = tuple(dict.fromkeys(name for _, shares in STAGES for name in shares))


def share(name: str, progress: float) -> float:
    """The share of a family when training has come so far."""
    places = [place for place, _ in STAGES]
    return float(np.interp(progress, places, [shares.get(name, 0.0) for _, shares in STAGES]))


def compact_share(progress: float) -> float:
    """Which part of the prompts is compact: most of them for three quarters of the time, one in three at the end.

    What is learned from compact prompts holds for full ones at once, and costs less than half the tokens.
    """
    return max(0.33, min(0.85, 4.6 - 4.8 * progress))


@dataclass(frozen=True)
class Materials:
    """What outside texts give: sentences to ask about, plain texts, facts for chat. `prepare` makes the files."""

    passages: tuple[Passage, ...]
    texts: tuple[str, ...]
    knowledge: Knowledge

    @classmethod
    def read(cls, folder: Path) -> Materials:
        """From passages.jsonl, texts.jsonl and knowledge.json in a folder."""
        knowledge = json.loads((folder / "knowledge.json").read_text(encoding="utf-8"))
        facts = {key: tuple((first, second) for first, second in pairs) for key, pairs in knowledge.items()}
        texts = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(read_passages(folder / "passages.jsonl"), tuple(map(json.loads, texts)), Knowledge(**facts))


class Mixture:
    """Draws examples of all families.

    Args:
        materials: of the outside texts.
    """

    def __init__(self, materials: Materials) -> None:
        natural, schema, tools = NaturalQuestions(materials.passages), SchemaQuestions(), ToolExamples()
        self._makers: dict[str, Callable[[Inventor], Example | Encoded]] = {
            "repeat": lambda i: primer.repeated_tokens(i.rng, bos=BOS_ID, end=END_ID, last=LAST_ORDINARY),
            "table": primer.table_text,
            "find": find_document,
            "find_many": find_documents,
            "find_newest": find_newest,
            "find_tools": find_tools,
            "ask_many": ask_many,
            "call_many": call_many,
            "schema": lambda i: grounded_example("schema", schema.question(i), i.rng),
            "property": lambda i: grounded_example("property", property_question(i), i.rng),
            "event": lambda i: grounded_example("event", event_question(i), i.rng),
            "species": lambda i: grounded_example("species", species_question(i), i.rng),
            "natural": lambda i: grounded_example("natural", natural.question(i), i.rng),
            "summary": lambda i: grounded_example("summary", summary(materials.passages, i), i.rng),
            "call": tools.call,
            "two_calls": tools.two_calls,
            "direct": lambda i: tools.directly(i, small_talk(i.rng)[0]),
            "results": tools.results,
            "two_steps": tools.two_steps,
            "chat": lambda i: conversation(materials.knowledge, i),
            "languages": lambda i: talk_example(i) if i.rng.random() < 0.4 else grounded_in_language(i),
            "text": lambda i: _plain_text(materials.texts, i.rng),
        }

    def examples(self, rng: random.Random, progress: float) -> Iterator[tuple[str, Example | Encoded]]:
        """Families and their examples, endlessly."""
        inventor = Inventor(rng)
        weights = [share(name, progress) for name in FAMILIES]
        while True:
            (name,) = rng.choices(FAMILIES, weights)
            yield name, self._makers[name](inventor)

    def of_family(self, name: str, inventor: Inventor) -> Example | Encoded:
        """One example of a family."""
        return self._makers[name](inventor)


def _plain_text(texts: tuple[str, ...], rng: random.Random) -> Example:
    roll = rng.random()
    if roll < 0.5 or not texts:
        topics = blocks("topics.txt")
        text = "\n".join(explanation(block, rng) for block in rng.sample(topics, rng.choice((1, 1, 2))))
    elif roll < 0.6:
        text = story(rng.choice(blocks("stories.txt")), rng)
    else:
        text = rng.choice(texts)
    return Example("text", (), text)


class BatchMaker:
    """Packed rows by number.

    Args:
        folder: what `prepare` made, with tokenizer.json.
        seed: of the stream.
        packer: makes a batch of the examples.
    """

    def __init__(self, folder: Path, *, seed: int, packer: Packer) -> None:
        self._mixture = Mixture(Materials.read(folder))
        self._encoder = ExampleEncoder(read_tokenizer(folder))
        self._seed, self._packer = seed, packer

    def encoded(self, step: int, progress: float) -> Iterator[Encoded]:
        """The examples that batch `step` is filled with."""
        rng = random.Random(f"batch {self._seed} {step}")
        compact = compact_share(progress)
        for name, example in self._mixture.examples(rng, progress):
            if isinstance(example, Encoded):
                yield Encoded(name, example.ids, example.supervised)
            else:
                one = self._encoder.encode(example, compact=rng.random() < compact)
                yield Encoded(name, one.ids, one.supervised)

    def __call__(self, step: int, progress: float) -> PackedRows:
        """Batch `step`."""
        return self._packer((one.ids, one.supervised) for one in self.encoded(step, progress))


def held_out_rows(folder: Path, packer: Packer, seed: int = 0) -> dict[str, PackedRows]:
    """A batch of fresh examples for every family, with full prompts: what the curves are drawn from."""
    mixture, encoder = Mixture(Materials.read(folder)), ExampleEncoder(read_tokenizer(folder))
    batches = {}
    for name in FAMILIES:
        inventor = Inventor(random.Random(f"held out {seed} {name}"))
        batches[name] = packer(_endless(mixture, encoder, name, inventor))
    return batches


def _endless(mixture: Mixture, encoder: ExampleEncoder, name: str, inventor: Inventor) -> Iterator[Ids]:
    while True:
        example = mixture.of_family(name, inventor)
        one = example if isinstance(example, Encoded) else encoder.encode(example)
        yield one.ids, one.supervised


def read_tokenizer(folder: Path) -> CohereTokenizerFast:
    """The tokenizer that `prepare` has trained."""
    return CohereTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
