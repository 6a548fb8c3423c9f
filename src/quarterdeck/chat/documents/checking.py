"""How far the sources of a citation say what it says, by their words alone.

No model, no list of stop words, any language. It cannot tell a paraphrase from an invention, nor see a negation; it
finds citations of the wrong document, invented names, and wrong numbers. With the words of a cited span and of its
sources (`quarterdeck.chat.documents.words`):

    overlap    weight of the span's words that occur in the best passage of a source / weight of all its words
    quotation  weight of the longest run of the span's words that stands in a source as it is / weight of all its words
    figures    numbers of the span that occur in those passages / all its numbers (1 if it has none)
    score      (0.75 overlap + 0.25 quotation) (0.5 + 0.5 figures)

A word weighs a fifth per character and at most 1, so that short words, which carry grammar in most languages, count
less; a number weighs 1. In scripts without spaces, pairs of neighbouring characters take the place of words, and weigh
1. A passage is a stretch of twice as many words as the span, and ten more. Each source of a
citation brings its own best passage, and a word counts that is in any of them. So the score is 1 for a quotation, about
0.75 for the same words in another order, below 0.5 if all numbers are wrong, and 0 if no word is shared.

    supports = check_citations(reply.citations)
    [support.citation.text for support in supports if support.score < 0.5]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from quarterdeck.chat.documents.words import Word, words_of
from quarterdeck.chat.json_text import compact
from quarterdeck.chat.messages import Citation, Source
from quarterdeck.errors import ChatError


@dataclass(frozen=True)
class Support:
    """How far a citation is supported; ``score``, ``overlap`` and ``quotation`` are in 0..1, as defined above.

    ``source`` is the one that supports it best, and ``passage`` the place in its text, from the first to the last
    word that is in the span; None and "" if no source shares a word. ``missing`` are the words of the span that are in
    none of the passages, as they are written in the answer.
    """

    citation: Citation
    score: float
    overlap: float
    quotation: float
    source: Source | None = None
    passage: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Feature:
    """What is looked for: a word, or two neighbouring characters. ``places`` are those of its words in the text."""

    key: str
    weight: float
    places: tuple[int, ...]


@dataclass(frozen=True)
class _Found:
    """What one source says about a span; ``keys`` are those of the features in its best passage."""

    source: Source
    keys: frozenset[str]
    overlap: float
    quotation: float
    passage: str


def check_citations(citations: Iterable[Citation]) -> tuple[Support, ...]:
    """How far each citation is supported by its sources, in their order."""
    library = _Library()
    return tuple(_check(citation, library) for citation in citations)


def supported(citations: Iterable[Citation], threshold: float = 0.5) -> tuple[Citation, ...]:
    """The citations that score at least the threshold; the others are dropped.

    Raises:
        ChatError: the threshold is not in 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ChatError(f"the threshold for citations is from 0 to 1, not {threshold}")
    return tuple(support.citation for support in check_citations(citations) if support.score >= threshold)


class _Library:
    """Sources, each cut into words once."""

    def __init__(self) -> None:
        self._words: dict[str, list[Word]] = {}

    def words_of(self, text: str) -> list[Word]:
        if text not in self._words:
            self._words[text] = words_of(text)
        return self._words[text]


def _check(citation: Citation, library: _Library) -> Support:
    words = words_of(citation.text)
    if not words:
        return _check_symbols(citation)
    features = _features(words)
    found = [_look_up(words, features, source, library) for source in citation.sources]
    keys = frozenset[str]().union(*(one.keys for one in found))
    best = max((one for one in found if one.keys), key=lambda one: (one.overlap, one.quotation), default=None)
    overlap = _share(features, keys)
    quotation = max((one.quotation for one in found), default=0.0)
    numbers = [word.key for word in words if word.kind == "number"]
    figures = sum(number in keys for number in numbers) / len(numbers) if numbers else 1.0
    score = (0.75 * overlap + 0.25 * quotation) * (0.5 + 0.5 * figures)
    missing = _missing(citation.text, words, {place for one in features if one.key in keys for place in one.places})
    if best is None:
        return Support(citation, score, overlap, quotation, missing=missing)
    return Support(citation, score, overlap, quotation, best.source, best.passage, missing)


def _check_symbols(citation: Citation) -> Support:
    """A span without words is supported by a source in which it stands."""
    for source in citation.sources:
        if citation.text and citation.text in text_of(source):
            return Support(citation, 1.0, 1.0, 1.0, source, citation.text)
    return Support(citation, 0.0, 0.0, 0.0, missing=(citation.text,) if citation.text else ())


def text_of(source: Source) -> str:
    """The values of a source's fields, one below the other; those that are no strings as JSON."""
    return "\n".join(value if isinstance(value, str) else compact(value) for value in source.data.values())


def _weight(word: Word) -> float:
    return min(1.0, len(word.key) / 5) if word.kind == "letters" else 1.0


def _features(words: Sequence[Word]) -> list[_Feature]:
    """Words, and pairs of characters; a character stands for itself only where it has no neighbour."""
    features = []
    for place, word in enumerate(words):
        if word.joins_next:
            features.append(_Feature(word.key + words[place + 1].key, 1.0, (place, place + 1)))
        elif not (place and words[place - 1].joins_next):
            features.append(_Feature(word.key, _weight(word), (place,)))
    return features


def _share(features: Sequence[_Feature], keys: Collection[str]) -> float:
    """The weight of the features with these keys, of the weight of all."""
    return _total(one for one in features if one.key in keys) / _total(features)


def _total(features: Iterable[_Feature]) -> float:
    return sum(one.weight for one in features)


def _look_up(words: Sequence[Word], features: Sequence[_Feature], source: Source, library: _Library) -> _Found:
    text = text_of(source)
    there = library.words_of(text)
    matcher = SequenceMatcher(None, [word.key for word in words], [word.key for word in there], autojunk=False)
    run = matcher.find_longest_match()
    quoted = [one for one in features if run.a <= one.places[0] and one.places[-1] < run.a + run.size]
    if len(quoted) == len(features):
        shown = text[there[run.b].start : there[run.b + run.size - 1].end]
        return _Found(source, frozenset(one.key for one in features), 1.0, 1.0, shown)
    passage = _best_passage(features, _hits(features, there), 2 * len(words) + 10)
    keys = frozenset(key for key, _, _ in passage)
    shown = text[there[passage[0][1]].start : there[passage[-1][2]].end] if passage else ""
    return _Found(source, keys, _share(features, keys), _total(quoted) / _total(features), shown)


_Hit = tuple[str, int, int]
"""A feature's key, and its first and last place among the words of a source."""


def _hits(features: Sequence[_Feature], there: Sequence[Word]) -> list[_Hit]:
    """Where the features occur, in order."""
    wanted = {one.key for one in features}
    alone = [(word.key, place, place) for place, word in enumerate(there)]
    pairs = [(word.key + there[place + 1].key, place, place + 1) for place, word in enumerate(there) if word.joins_next]
    return sorted((hit for hit in alone + pairs if hit[0] in wanted), key=lambda hit: hit[1:])


def _best_passage(features: Sequence[_Feature], hits: Sequence[_Hit], length: int) -> Sequence[_Hit]:
    """The hits that lie within so many words and weigh the most together; the shortest and the first such.

    A window slides over the hits, and lets go of its first as long as it is too long or holds that hit twice.
    """
    weights: defaultdict[str, float] = defaultdict(float)
    for one in features:
        weights[one.key] += one.weight
    held, weight, first = Counter[str](), 0.0, 0
    best: Sequence[_Hit] = ()
    best_rank = (0.0, 0)
    for last, (key, _, end) in enumerate(hits):
        weight += 0 if held[key] else weights[key]
        held[key] += 1
        while end - hits[first][1] >= length or held[hits[first][0]] > 1:
            held[hits[first][0]] -= 1
            weight -= 0 if held[hits[first][0]] else weights[hits[first][0]]
            first += 1
        rank = (round(weight, 9), hits[first][1] - end)
        if rank > best_rank:
            best, best_rank = hits[first : last + 1], rank
    return best


def _missing(text: str, words: Sequence[Word], covered: Collection[int]) -> tuple[str, ...]:
    """The words that are not covered, as they are written; neighbouring characters together."""
    missing: list[tuple[int, int]] = []
    for place, word in enumerate(words):
        if place in covered:
            continue
        if missing and missing[-1][1] == word.start and word.kind == "character":
            missing[-1] = (missing[-1][0], word.end)
        else:
            missing.append((word.start, word.end))
    return tuple(text[start:end] for start, end in missing)
