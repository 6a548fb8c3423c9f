"""Questions that describe what they ask about, and questions about what somebody did.

"Where do the tallest penguins live?" needs two documents: which are the tallest, and where these live.
"""

from __future__ import annotations

from functools import cache

from quarterdeck.training.midshipman.answers import Question, Statement, loosened, make_document, shuffled
from quarterdeck.training.midshipman.grammar import options, text_lines, word_lists
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.schemas import is_held_out

HELD_OUT = ("tallest penguins",)
"""What the best known example of the format asks about: never trained on in these words."""
_FACTS = {
    "live": "habitat",
    "eat": "food_animal",
    "weigh": "kilograms",
    "age": "years",
    "sleep": "habitat",
    "found": "person",
    "move": "speed",
}


@cache
def _forms() -> tuple[tuple[str, str, str], ...]:
    """(predicate, question, kind of value)."""
    found = []
    for line in text_lines("species.txt"):
        key, _, rest = line.partition(": ")
        if key in _FACTS:
            pairs = (one.partition(" = ") for one in options(rest))
            found += [(predicate, question, _FACTS[key]) for predicate, _, question in pairs]
    return tuple(found)


def species_question(inventor: Inventor) -> Question:
    """Asked by a superlative that one document gives, about a fact that another one gives."""
    rng, lists = inventor.rng, word_lists("species.txt")
    group, superlative = rng.choice(lists["groups"]), rng.choice(lists["superlatives"])
    while f"{superlative} {group}" in HELD_OUT:
        group = rng.choice(lists["groups"])
    firsts = [name if rng.random() < 0.3 else inventor.name() for name in rng.sample(lists["first"], 3)]
    names = [f"{first} {group}" for first in firsts]
    predicate, question, kind = rng.choice(_forms())
    values = [inventor.value(kind) for _ in names]
    told = rng.choice(
        (
            f"{names[0]} are the {superlative}.",
            f"{names[0]} are the {superlative} {group}.",
            f"The {superlative} {group} are {names[0]}.",
        )
    )
    if rng.random() < 0.5:
        told += rng.choice(
            (
                f" They have been studied since {inventor.value('year')}.",
                f" Their young weigh {inventor.value('kilograms')}.",
                "",
            )
        )
    texts = [(rng.choice((f"{superlative.capitalize()} {group}", names[0], f"About {group}")), told)]
    for name, value in zip(names[: rng.choice((1, 2, 3))], values, strict=False):
        texts.append((rng.choice((name, "Habitats", "Facts")), f"{name} {predicate.replace('<v>', value)}."))
    direct = rng.random() < 0.3
    documents, places = shuffled([make_document(*text, inventor) for text in texts], rng)
    before, _, after = predicate.partition("<v>")
    fact = f"{before}{values[0]}{after}"
    if direct:
        asked = question.replace("the <d>", names[0])
        answer = Statement(((f"{names[0]} {before}", ()), (values[0], (places[1],)), (f"{after}.", ())))
    else:
        asked = question.replace("<d>", f"{superlative} {group}")
        answer = Statement(((names[0], (places[0],)), (" ", ()), (fact, (places[1],)), (".", ())))
    about = {"rivals": values[1 : len(texts) - 1]}
    return Question(loosened(asked, rng), documents, (answer,), frozenset(places[:2]), about)


@cache
def verbs(held_out: bool) -> tuple[tuple[str, str, str, tuple[str, ...]], ...]:
    """(base, past, participle, objects) of texts/verbs.txt, to train on or held out."""
    found = []
    for line in text_lines("verbs.txt"):
        forms, _, objects = line.partition(" | ")
        base, past, participle = forms.split()
        found.append((base, past, participle, tuple(one.strip() for one in objects.split(","))))
    return tuple(verb for verb in found if is_held_out(verb[0]) == held_out)


def event_question(inventor: Inventor, *, held_out: bool = False) -> Question:
    """Who did what, where, when and why."""
    rng = inventor.rng
    events = []
    for base, past, participle, objects in rng.sample(verbs(held_out), rng.choice((1, 2, 3, 4))):
        who = inventor.value("person") if rng.random() < 0.75 else f"The {inventor.value('job_title')}"
        events.append((base, past, participle, rng.choice(objects), who))
    details = [{k: inventor.value(f"event_{k}") for k in ("place", "time", "reason")} for _ in events]
    sentences = [_told(event, detail, inventor) for event, detail in zip(events, details, strict=True)]
    texts = [
        (rng.choice(("News", "Report", "Diary", "Log book", capital(event[3]))), "".join(text for text, _ in pieces))
        for event, pieces in zip(events, sentences, strict=True)
    ]
    together = len(texts) > 1 and rng.random() < 0.3
    if together:
        order = rng.sample(range(len(texts)), len(texts))
        texts = [("Report", " ".join(texts[n][1] for n in order))]
    documents, places = shuffled([make_document(*text, inventor) for text in texts], rng)
    pieces = sentences[0]
    role = rng.choice([role for _, role in pieces if role])
    answer = Statement(tuple((text, (places[0],) if kind == role else ()) for text, kind in pieces))
    about = {"rivals": [text for other in sentences[1:] for text, kind in other if kind == role]}
    return Question(loosened(_asked(events[0], role, inventor), rng), documents, (answer,), about=about)


def capital(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:]


def _thing(words: str) -> str:
    """The thing with its article, where it can have one."""
    return (
        words
        if words.split()[0] in ("ten", "three", "twelve", "forty", "bread", "dinner", "gold", "left")
        else f"the {words}"
    )


def _is_plural(thing: str) -> bool:
    return thing.endswith("s")


def _told(event: tuple[str, str, str, str, str], detail: dict[str, str], inventor: Inventor) -> list[tuple[str, str]]:
    """A sentence as (text, role of the text in the event, or "")."""
    rng = inventor.rng
    _, past, participle, what, who = event
    extra = rng.sample(("place", "time", "reason"), rng.choice((1, 1, 2)))
    thing = _thing(what)
    if rng.random() < 0.3 and not _is_plural(thing):
        inside = "the " + who[4:] if who.startswith("The ") else who
        told = [(capital(thing), "what"), (f" was {participle} by ", ""), (inside, "who")]
    else:
        told = [(who, "who"), (f" {past} ", ""), (thing, "what")]
    for key in sorted(extra):
        told += [(" ", ""), (detail[key], key)]
    return [*told, (".", "")]


def _asked(event: tuple[str, str, str, str, str], role: str, inventor: Inventor) -> str:
    rng = inventor.rng
    base, past, participle, what, who = event
    inside = "the " + who[4:] if who.startswith("The ") else who
    thing = _thing(what)
    was = "were" if _is_plural(thing) else "was"
    if role == "who":
        return rng.choice(
            (
                f"Who {past} {thing}?",
                f"Who {past} {thing}?",
                f"By whom {was} {thing} {participle}?",
                f"Who was it that {past} {thing}?",
            )
        )
    if role == "what":
        return rng.choice(
            (f"What did {inside} {base}?", f"What was it that {inside} {past}?", f"What was {participle} by {inside}?")
        )
    word = {"place": "Where", "time": "When", "reason": "Why"}[role]
    return rng.choice((f"{word} did {inside} {base} {thing}?", f"{word} {was} {thing} {participle}?"))
