"""From a question, documents and the facts that answer it to an example in the format of grounded answers.

The sentence that answers is the one that stands in the document, with the thing's name in place of a pronoun; what is
cited is the value that was asked for. A question that the documents do not answer gets `REFUSAL`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quarterdeck.chat.messages import Document, Message
from quarterdeck.chat.template import CitationMode
from quarterdeck.training.midshipman.example import Example
from quarterdeck.training.midshipman.invention import Inventor

REFUSAL = "I could not find that in the documents."

_MODES: tuple[CitationMode, ...] = ("accurate",) * 15 + ("fast",) * 4 + ("off",)

PREAMBLES = (
    "You are a helpful assistant.",
    "You answer questions about our documents.",
    "Answer briefly and cite your sources.",
    "You are midshipman, a small demonstration model.",
    "## Task and Context\nYou help the crew of a ship to find things in their papers.",
    "You help people with their files. Be polite.",
    "Answer from the documents only.",
    "You are a librarian.",
    "## Task\nAnswer the questions of customers.\n\n## Style Guide\nWrite short sentences.",
    "You are an assistant in a museum.",
)


@dataclass(frozen=True)
class Statement:
    """A sentence of the answer: ``pieces`` are (text, numbers of the documents it is cited from)."""

    pieces: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def plain(self) -> str:
        """Without citations."""
        return "".join(text for text, _ in self.pieces)

    @property
    def grounded(self) -> str:
        """With citations."""
        return "".join(_cited(text, numbers) if numbers else text for text, numbers in self.pieces)

    @property
    def sources(self) -> set[int]:
        """All documents that are cited."""
        return {number for _, numbers in self.pieces for number in numbers}


def _cited(text: str, numbers: Sequence[int]) -> str:
    listed = ",".join(map(str, sorted(numbers)))
    return f"<co: {listed}>{text}</co: {listed}>"


def statement(template: str, name: str, value: str, sources: Sequence[int]) -> Statement:
    """A sentence from ``<e>`` and ``<v>``; what is cited is the value."""
    before, _, after = template.partition("<v>")
    value = value if before else capitalised(value)
    return Statement(((named(before, name, True), ()), (value, tuple(sources)), (named(after, name, False), ())))


def named(text: str, name: str, at_start: bool) -> str:
    """A text with a name in it; a name's own article is small inside a sentence."""
    if text.startswith("<e>") and at_start:
        text = capitalised(name) + text[3:]
    inside = "the " + name[4:] if name.startswith("The ") else name
    return text.replace("<e>", inside)


def capitalised(name: str) -> str:
    """A name at the start of a sentence; names of packages, with - or _, stay small."""
    return name if "-" in name or "_" in name else name[:1].upper() + name[1:]


@dataclass(frozen=True)
class Question:
    """What is asked, and the truth about it."""

    text: str
    documents: tuple[Document, ...]
    answer: tuple[Statement, ...]
    relevant: frozenset[int] = frozenset()
    about: dict[str, Any] = field(default_factory=dict)


def completion(answer: Sequence[Statement], relevant: Sequence[int], mode: CitationMode) -> str:
    """What the model writes."""
    cited = sorted({number for one in answer for number in one.sources})
    plain = " ".join(one.plain for one in answer) or REFUSAL
    grounded = " ".join(one.grounded for one in answer) or REFUSAL
    if mode == "off":
        return f"Answer: {plain}"
    lists = f"Relevant Documents: {_listed(relevant)}\nCited Documents: {_listed(cited)}\n"
    first = f"Answer: {plain}\n" if mode == "accurate" else ""
    return f"{lists}{first}Grounded answer: {grounded}"


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, sorted(numbers))) or "None"


def grounded_example(family: str, question: Question, rng: random.Random, mode: CitationMode | None = None) -> Example:
    """The example; without a `mode`, it is drawn, and sometimes a system message is put before."""
    chosen: CitationMode = rng.choice(_MODES) if mode is None else mode
    relevant = sorted(question.relevant | {n for one in question.answer for n in one.sources})
    messages: list[Message] = []
    if mode is None and rng.random() < 0.15:
        messages.append(Message("system", rng.choice(PREAMBLES)))
    messages.append(Message("user", question.text))
    return Example(
        family,
        tuple(messages),
        completion(question.answer, relevant, chosen),
        documents=question.documents,
        citation_mode=chosen,
        about={
            "answer": " ".join(one.plain for one in question.answer) or REFUSAL,
            "sources": sorted({n for one in question.answer for n in one.sources}),
            "values": [text for one in question.answer for text, numbers in one.pieces if numbers],
            **question.about,
        },
    )


def loosened(question: str, rng: random.Random) -> str:
    """The question as people type it: sometimes in lower case, without its mark, or with a polite start."""
    roll = rng.random()
    if roll < 0.05:
        return question.rstrip("?")
    if roll < 0.08:
        return question[0].lower() + question[1:].rstrip("?")
    if roll < 0.14 and question.endswith("?"):
        return rng.choice(("Hello! ", "Please tell me: ", "I have a question. ", "Can you tell me: ")) + question
    return question


def make_document(title: str, text: str, inventor: Inventor) -> Document:
    """A document with the fields that documents have: mostly title and text."""
    rng = inventor.rng
    roll = rng.random()
    if roll < 0.62:
        data = {"title": title, "text": text}
    elif roll < 0.72:
        data = {"text": text}
    elif roll < 0.80:
        data = {"title": title, "snippet": text}
    elif roll < 0.87:
        data = {"title": title, "url": f"https://{inventor.word(1)}.example/{inventor.word(1)}", "text": text}
    elif roll < 0.93:
        data = {"title": title, "date": inventor.value("date"), "text": text}
    else:
        data = {"name": title, "content": text, "author": inventor.value("person")}
    return Document(data)


def shuffled(documents: Sequence[Document], rng: random.Random) -> tuple[tuple[Document, ...], list[int]]:
    """The documents in a random order, and where each of them went."""
    order = list(range(len(documents)))
    rng.shuffle(order)
    places = [0] * len(order)
    for place, number in enumerate(order):
        places[number] = place
    return tuple(documents[number] for number in order), places
