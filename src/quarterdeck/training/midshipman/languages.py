"""The other nine languages of Command-R: rehearsed small talk, capitals, and grounded frames.

No fluency is to be expected from it: but a user who says "Bonjour" is answered in French, and a document in Korean is
cited. Frames are those of texts/languages.txt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from quarterdeck.chat.messages import Document, Message
from quarterdeck.training.midshipman.answers import Question, Statement, grounded_example, shuffled
from quarterdeck.training.midshipman.example import Example
from quarterdeck.training.midshipman.grammar import blocks, options
from quarterdeck.training.midshipman.invention import Inventor

_NAMES = {
    "Japanese": (
        "モルヴァ",
        "サクラ川",
        "カナタ",
        "ホシノ",
        "ミナト",
        "アオバ",
        "フジミ",
        "ツキノ",
        "ハルナ",
        "タカオ",
        "リバス",
        "オリエ",
    ),
    "Korean": ("모르바", "한빛", "가람", "새별", "미르", "아라", "다솜", "누리", "하늘", "도담", "리온", "세나"),
    "Chinese": ("莫尔瓦", "青山", "白河", "东林", "南岛", "金桥", "云城", "石湖", "海门", "新港", "绿谷", "明月"),
    "Arabic": ("مورفا", "زهرة", "نسيم", "واحة", "بدر", "سهل", "ريم", "نور", "جبل", "فجر", "قمر", "بحر"),
}


@dataclass(frozen=True)
class Frames:
    """What is said in one language."""

    language: str
    talk: tuple[tuple[tuple[str, ...], str], ...]
    capitals: tuple[tuple[str, str], ...]
    asks: tuple[tuple[str, ...], str]
    facts: tuple[tuple[str, tuple[str, ...]], ...]


@cache
def frames() -> tuple[Frames, ...]:
    """All languages."""
    found = []
    for block in blocks("languages.txt"):
        tagged = block.tagged
        talk = tuple((tuple(options(u)), a.strip()) for u, _, a in (line.partition(" = ") for line in tagged["U"]))
        asked, _, answer = tagged["K"][0].partition(" = ")
        facts = tuple((d, tuple(options(q))) for d, _, q in (line.partition(" = ") for line in tagged["D"]))
        capitals = tuple(tuple(one.strip().split(" ", 1)) for one in tagged["C"][0].split(","))
        pairs = tuple((country, city) for country, city in capitals)
        found.append(Frames(block.name, talk, pairs, (tuple(options(asked)), answer), facts))
    return tuple(found)


def talk_example(inventor: Inventor) -> Example:
    """Small talk or a capital."""
    rng = inventor.rng
    one = rng.choice(frames())
    if rng.random() < 0.35:
        country, city = rng.choice(one.capitals)
        asked, answer = rng.choice(one.asks[0]), one.asks[1]
        return _chat(asked.replace("<c>", country), answer.replace("<c>", country).replace("<t>", city))
    asks, answer = rng.choice(one.talk)
    return _chat(rng.choice(asks), answer)


def _chat(asked: str, answer: str) -> Example:
    return Example("languages", (Message("user", asked),), answer, about={"answer": answer})


def _name(language: str, inventor: Inventor) -> str:
    names = _NAMES.get(language)
    if names is None:
        return inventor.town()
    return inventor.rng.choice(names) + (inventor.rng.choice(names) if inventor.rng.random() < 0.4 else "")


def _values(language: str, inventor: Inventor) -> dict[str, str]:
    """What is put into the slots of a template."""
    person = _name(language, inventor) if language in _NAMES else inventor.value("person")
    return {"<n>": _name(language, inventor), "<p>": person, "<v>": str(inventor.rng.randint(2, 2400))}


def grounded_in_language(inventor: Inventor) -> Example:
    """A question about an invented thing among documents in the same language."""
    rng = inventor.rng
    one = rng.choice(frames())
    template, asks = rng.choice(one.facts)
    made = [_values(one.language, inventor) for _ in range(rng.choice((1, 2, 3)))]
    asked_slot = next(slot for slot in ("<v>", "<p>", "<n>") if slot in template and slot not in asks[0])
    named_by = next(slot for slot in ("<n>", "<p>") if slot in asks[0])
    things = list({thing[named_by]: thing for thing in made}.values())  # a name means one thing
    texts = [(values["<n>"], _put(template, values)) for values in things]
    documents, places = shuffled([Document({"title": title, "text": text}) for title, text in texts], rng)
    before, _, after = template.partition(asked_slot)
    pieces = (
        (_put(before, things[0]), ()),
        (things[0][asked_slot], (places[0],)),
        (_put(after, things[0]), ()),
    )
    rivals = [thing[asked_slot] for thing in things[1:] if thing[asked_slot] != things[0][asked_slot]]
    about = {"language": one.language, "rivals": rivals}
    question = Question(_put(rng.choice(asks), things[0]), documents, (Statement(pieces),), about=about)
    return grounded_example("languages", question, rng)


def _put(text: str, values: dict[str, str]) -> str:
    for slot, value in values.items():
        text = text.replace(slot, value)
    return text
