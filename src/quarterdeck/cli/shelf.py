"""Documents of a session, and which of them a question gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from quarterdeck.chat.messages import Document
from quarterdeck.chat.ranking import Ranking
from quarterdeck.chat.template import Prompt, render


class Shelf:
    """All documents if they fit into a prompt, else those that share the most words with what is asked.

    Args:
        documents: in their order, which prompts keep.
        count: how many tokens a prompt has.
    """

    def __init__(self, documents: Sequence[Document], count: Callable[[Prompt], int]) -> None:
        self._documents = documents
        self._count = count

    @cached_property
    def _ranking(self) -> Ranking:
        return Ranking(self._documents)

    @cached_property
    def _sizes(self) -> list[int]:
        """How many tokens each document adds to a prompt."""
        empty = self._count(render("?", documents=[]))
        return [self._count(render("?", documents=[document])) - empty for document in self._documents]

    def chosen(self, question: str, prompt: Callable[[Sequence[Document]], Prompt], budget: int) -> list[Document]:
        """Documents for a question.

        Args:
            question: the words to look for.
            prompt: what the model would be asked with documents.
            budget: most tokens of the prompt.
        """
        room = budget - self._count(prompt([]))
        if sum(self._sizes) <= room:
            return list(self._documents)
        taken: list[int] = []
        for number in self._ranking.order(question):
            if self._sizes[number] <= room:
                taken.append(number)
                room -= self._sizes[number]
        while taken and self._count(prompt(self._in_order(taken))) > budget:  # sizes do not quite add up
            taken.pop()
        return self._in_order(taken)

    def _in_order(self, numbers: Sequence[int]) -> list[Document]:
        return [self._documents[number] for number in sorted(numbers)]
