"""Sentences that people wrote, as documents: find the one that is asked about, and repeat it.

The passages come from a file that training/midshipman/prepare.py makes of permissively licensed texts, one JSON
object a line: ``source``, ``title`` and ``sentences``. What a model learns here is what helps with documents of its
users: words of the question lead to the sentence.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quarterdeck.chat.messages import Document
from quarterdeck.training.midshipman.answers import Question, Statement, loosened, make_document, shuffled
from quarterdeck.training.midshipman.invention import Inventor

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_STOP = frozenset(
    "the a an of to in and or for on at by with from as is are was were be been being it its this that these those he "
    "she they them his her their we our us you your i my me not no nor but if then than so such which who whom whose "
    "what when where why how all any each every both few more most other some only own same too very can could will "
    "would shall should may might must do does did done have has had having there here into out up down over under "
    "about after before between through during against again once also just even still yet ever never many much one "
    "two three first second last new old good great well make made upon while because until since though although "
    "however therefore thus like said say says see used using use without within among along per via etc".split()
)
"""Words that are hardly ever what a sentence is about."""
_ENDINGS = ("ed", "ly", "ing", "'s")
_DEFINES = re.compile(r"^((?:The |An? )?[A-Za-z][\w' -]{2,40}?) (is|are|was|were|means) (?:an? |the |one |any )")
_NO_NOUN = frozenset("is are was were be been that it there this these those if which who what when yet".split())
_FORMS = (
    "What does the text say about {s}?",
    "Tell me about {s}.",
    "What do the documents say about {s}?",
    "What is said about {s}?",
    "What do you know about {s}?",
    "Is there anything about {s}?",
    "Find the sentence about {s}.",
    "What can you tell me about {s}?",
    "I am looking for something about {s}.",
    "Which sentence mentions {s}?",
    "Where is {s} mentioned?",
    "{S}?",
    "What about {s}?",
)


@dataclass(frozen=True)
class Passage:
    """Neighbouring sentences of one text."""

    source: str
    title: str
    sentences: tuple[str, ...]


def read_passages(path: Path) -> tuple[Passage, ...]:
    """The passages of a file."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(Passage(row["source"], row["title"], tuple(row["sentences"])) for row in rows)


def is_good_sentence(text: str) -> bool:
    """Whether a sentence can be asked for: of a middle length, a whole sentence, mostly letters."""
    if not 35 <= len(text) <= 210 or not text[0].isupper() or text[-1] not in ".!?":
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters / len(text) > 0.9 and text.count('"') % 2 == 0 and text.count("(") == text.count(")")


class NaturalQuestions:
    """Questions about sentences of passages.

    Args:
        passages: to choose from.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        counts = Counter(word.lower() for passage in passages for s in passage.sentences for word in _WORD.findall(s))
        self._counts = counts

    def question(self, inventor: Inventor) -> Question:
        """A question about one sentence, or one about words that are nowhere in the documents."""
        rng = inventor.rng
        for _ in range(20):
            passage = rng.choice(self._passages)
            window = _window(passage, rng)
            place = rng.randrange(len(window))
            asked = self.ask(window[place], rng)
            if asked is not None:
                whole = re.compile(rf"\b{re.escape(asked[1])}\b", re.IGNORECASE)
                told = [n for n, one in enumerate(window) if whole.search(one)] or [place]
                window = tuple(one for n, one in enumerate(window) if n not in told[1:])
                place = told[0]  # and one place only: a question has one answer
                break
        else:
            raise AssertionError("twenty passages without a good sentence: prepare lets none such through")
        others = [rng.choice(self._passages) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        texts = [(passage.title, " ".join(window)), *((p.title, " ".join(_window(p, rng))) for p in others)]
        words = {word.lower() for _, text in texts[1:] for word in _WORD.findall(text)}
        if rng.random() < 0.1:  # the sentence is not there
            texts = texts[1:] or [(p.title, " ".join(_window(p, rng))) for p in [rng.choice(self._passages)]]
            documents, _ = shuffled([make_document(t, x, inventor) for t, x in texts], rng)
            kept = not set(_WORD.findall(asked[1].lower())) & {w for _, x in texts for w in _WORD.findall(x.lower())}
            if kept:
                return Question(asked[0], documents, (), about={"unanswerable": True})
        elif not set(_WORD.findall(asked[1].lower())) - _STOP <= words:
            return _answered(asked[0], texts, window[place], inventor)
        return _answered(asked[0], [(passage.title, " ".join(window))], window[place], inventor)

    def ask(self, sentence: str, rng: random.Random) -> tuple[str, str] | None:
        """A question for a sentence and the words it asks by; None if it has none that are worth asking about."""
        if not is_good_sentence(sentence):
            return None
        define = _DEFINES.match(sentence)
        if define is not None and _is_subject(define[1]) and rng.random() < 0.5:
            subject, verb = define[1], define[2]
            inside = subject[0].lower() + subject[1:] if subject.split()[0] in ("The", "A", "An") else subject
            if verb == "means":
                return f"What does {inside} mean?", subject
            return loosened(f"What {verb} {inside}?", rng), subject
        subject = self.subject(sentence, rng)
        if subject is None:
            return None
        form = rng.choice(_FORMS)
        return form.format(s=subject, S=subject[0].upper() + subject[1:]), subject

    def subject(self, sentence: str, rng: random.Random) -> str | None:
        """One to three neighbouring words of the sentence, among them a rare one."""
        words = sentence.rstrip(".!?").split()
        plain = [word.strip(",;:\"'()") for word in words]
        if sentence.startswith(("For example", "Another word")):
            return None
        rare = [
            n
            for n, word in enumerate(plain)
            if _WORD.fullmatch(word) and len(word) > 3 and word.lower() not in _STOP and not word.endswith(_ENDINGS)
        ]
        if not rare:
            return None
        rare.sort(key=lambda n: self._counts[plain[n].lower()])
        at = rng.choice(rare[:3])
        begin = end = at
        if (
            rng.random() < 0.6
            and at > 0
            and words[at - 1] == plain[at - 1]
            and words[at].startswith(plain[at])
            and plain[at - 1].lower() not in _STOP
        ):
            begin -= 1
        joined = at + 1 < len(words) and words[at] == plain[at] and words[at + 1].startswith(plain[at + 1])
        if rng.random() < 0.5 and joined and plain[at + 1].lower() not in _STOP:
            end += 1
        found = plain[begin : end + 1]
        if begin == 0 and not (len(found[0]) > 1 and found[0][1:] != found[0][1:].lower()):
            found[0] = found[0] if self._counts[found[0].lower()] < 3 else found[0][0].lower() + found[0][1:]
        return " ".join(found) if all(re.fullmatch(r"[\w-]+", word) for word in found) else None


def _is_subject(words: str) -> bool:
    """Whether words before "is a" name something: no pronoun, and no clause with a verb of its own."""
    return words.lower() not in _STOP and not _NO_NOUN & set(words.lower().split())


def _window(passage: Passage, rng: random.Random) -> tuple[str, ...]:
    """One to four neighbouring sentences."""
    count = min(len(passage.sentences), rng.choice((1, 2, 3, 4)))
    begin = rng.randint(0, len(passage.sentences) - count)
    return passage.sentences[begin : begin + count]


def _answered(asked: str, texts: Sequence[tuple[str, str]], sentence: str, inventor: Inventor) -> Question:
    documents, places = shuffled([make_document(*text, inventor) for text in texts], inventor.rng)
    return Question(asked, documents, (sentence_statement(sentence, places[0]),), about={"sentence": sentence})


def sentence_statement(sentence: str, number: int) -> Statement:
    """A whole sentence, cited but for its full stop."""
    return Statement(((sentence[:-1], (number,)), (sentence[-1], ())))


def summary(passages: Sequence[Passage], inventor: Inventor) -> Question:
    """The first sentences of one to three documents."""
    rng = inventor.rng
    chosen = [rng.choice(passages) for _ in range(rng.choice((1, 2, 2, 3)))]
    windows = [_window(passage, rng) for passage in chosen]
    documents: list[Document] = []
    for passage, window in zip(chosen, windows, strict=True):
        documents.append(make_document(passage.title, " ".join(window), inventor))
    asked = rng.choice(
        (
            "Summarize the documents.",
            "Give me a short summary.",
            "What are these documents about?",
            "Summarise this, please.",
            "Can you sum this up?",
            "What do the documents say?",
        )
    )
    answers = tuple(sentence_statement(window[0], number) for number, window in enumerate(windows))
    return Question(asked, tuple(documents), answers, about={"summary": True})


def write_passages(passages: Iterable[Passage], path: Path) -> int:
    """Write a file that `read_passages` reads; the number of passages."""
    lines = [json.dumps(vars(one) | {"sentences": list(one.sentences)}, ensure_ascii=False) for one in passages]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)
