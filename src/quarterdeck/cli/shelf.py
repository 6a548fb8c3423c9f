"""Documents of a session, and which of them a question gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from quarterdeck.chat.documents.ranking import Ranking
from quarterdeck.chat.messages import Document
from quarterdeck.chat.template import Prompt, render

_MOST_CHARACTERS_PER_TOKEN = 16
"""More than any text has on average, so that documents which are far too long need not be counted."""

_MISFITS = 8
"""After so many documents in a row that do not fit, the prompt counts as full."""


class Shelf:
    """All documents if they fit into a prompt, else those that share the most words with what is asked.

    Args:
        documents: in their order, which prompts keep.
        count: how many tokens a prompt has.
    """

    def __init__(self, documents: Sequence[Document], count: Callable[[Prompt], int]) -> None:
        self._documents = documents
        self._count = count
        self._sizes: dict[int, int] = {}
        self._characters = sum(len(str(value)) for document in documents for value in document.data.values())

    @cached_property
    def _ranking(self) -> Ranking:
        return Ranking(self._documents)

    def chosen(self, question: str, prompt: Callable[[Sequence[Document]], Prompt], budget: int) -> list[Document]:
        """Documents for a question; all of them, which is too much, if not even one fits.

        Args:
            question: the words to look for.
            prompt: what the model would be asked with documents.
            budget: most tokens of the prompt.
        """
        everything = list(self._documents)
        if self._characters <= budget * _MOST_CHARACTERS_PER_TOKEN and self._count(prompt(everything)) <= budget:
            return everything
        taken = self._best(question, budget - self._count(prompt([])))
        while taken and self._count(prompt(self._in_order(taken))) > budget:  # sizes do not quite add up
            taken.pop()
        return self._in_order(taken) or everything

    def _best(self, question: str, room: int) -> list[int]:
        """The numbers of documents that fit into so many tokens, best first."""
        taken: list[int] = []
        misfits = 0
        for number in self._ranking.order(question):
            size = self._size(number)
            if size <= room:
                taken.append(number)
                room -= size
                misfits = 0
            else:
                misfits += 1
            if misfits == _MISFITS:
                break
        return taken

    def _size(self, number: int) -> int:
        """How many tokens a document adds to a prompt."""
        if number not in self._sizes:
            without, with_it = (self._count(render("?", documents=one)) for one in ([], [self._documents[number]]))
            self._sizes[number] = with_it - without
        return self._sizes[number]

    def _in_order(self, numbers: Sequence[int]) -> list[Document]:
        return [self._documents[number] for number in sorted(numbers)]
