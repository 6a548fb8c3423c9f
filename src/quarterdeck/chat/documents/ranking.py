"""Orders documents by how much of a question's words they hold, for when not all of them fit into a prompt.

    Ranking(documents).order("Where do penguins live?")        # [3, 0, 1, 2]: numbers of the documents, best first

Words are those of `quarterdeck.chat.documents.words`, so any language and script will do; the weighting is Okapi
BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009): for each word of the
question

    log(1 + (N - n + 0.5) / (n + 0.5)) * f (k + 1) / (f + k (1 - b + b L / A))

with N documents, n of which hold the word, this one f times among its L words, A words being the average. A word that
is rare counts more, its repetitions less and less. There are no synonyms: who asks for "height" does not find "tall".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from quarterdeck.chat.documents.words import words_of
from quarterdeck.chat.json_text import compact
from quarterdeck.chat.messages import Document

K = 1.2
B = 0.75


class Ranking:
    """Documents, cut into words once."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._counts = [_counts(document) for document in documents]
        self._holding = Counter(key for counts in self._counts for key in counts)
        lengths = [counts.total() for counts in self._counts]
        self._average = sum(lengths) / len(lengths) if any(lengths) else 1.0

    def order(self, question: str) -> list[int]:
        """The numbers of all documents, those first that have most to do with the question; ties in their order."""
        keys = {word.key for word in words_of(question)}
        scores = [self._score(counts, keys) for counts in self._counts]
        return sorted(range(len(scores)), key=lambda number: -scores[number])

    def _score(self, counts: Counter[str], keys: set[str]) -> float:
        damping = K * (1 - B + B * counts.total() / self._average)
        shared = [key for key in keys if key in counts]
        return math.fsum(self._weight(key) * counts[key] * (K + 1) / (counts[key] + damping) for key in shared)

    def _weight(self, key: str) -> float:
        holding = self._holding[key]
        return math.log(1 + (len(self._counts) - holding + 0.5) / (holding + 0.5))


def _counts(document: Document) -> Counter[str]:
    values = (value if isinstance(value, str) else compact(value) for value in document.data.values())
    return Counter(word.key for value in values for word in words_of(value))
