"""Takes control tokens and citation tags out of a text that arrives in pieces, so that none is left in what remains.

    Scrubber(("<BOS_TOKEN>",)).feed("a<BOS_TO"), .feed("KEN>b")       "a", "b"

Taking one out can put another together (``<BOS_<BOS_TOKEN>TOKEN>``), so openings are kept in a stack: whatever may
still become a token waits, with what it encloses, until that is decided. Every token begins with ``<`` and has none
inside; that is why only the innermost opening can grow. Where more than 80 characters wait, the oldest opening goes
out; if all behind it is taken out later, the character that would complete it as a token is taken out, too.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from functools import lru_cache

from quarterdeck.chat.parsing.citations import TAG, TAG_BEGUN, UNFINISHED

_MOST_WAITING = 80


@lru_cache(maxsize=8)
def _beginnings(tokens: tuple[str, ...]) -> frozenset[str]:
    return frozenset(token[:end] for token in tokens for end in range(1, len(token)))


class Scrubber:
    """Removes tokens, and with ``tags`` also ``<co: 0>`` and ``</co: 0>``.

    Args:
        tokens: what to remove; each begins with ``<``, the only one it has.
        ends: those of them that end the text: what follows is dropped.
        tags: whether to remove citation tags, and at the end of the text one that is unfinished.

    Attributes:
        ended: one of ``ends`` was found.
        removed: for each character removed so far its place in the text that was fed, ascending.
    """

    def __init__(self, tokens: Iterable[str], *, ends: Iterable[str] = (), tags: bool = False) -> None:
        self._tokens = frozenset(tokens)
        self._beginnings = _beginnings(tuple(sorted(self._tokens)))
        self._ends = frozenset(ends)
        self._tags = tags
        self._openings: list[tuple[str, list[int]]] = []
        self._waiting = 0
        self._given_up = ""
        self._length = 0
        self.ended = False
        self.removed: list[int] = []

    def feed(self, text: str) -> str:
        """The text that is now certain."""
        if self.ended:
            return ""
        if not self._openings and not self._given_up and "<" not in text:
            self._length += len(text)
            return text
        certain: list[str] = []
        for character in text:
            certain.append(self._take(character))
            self._length += 1
            if self.ended:
                break
        return "".join(certain)

    @property
    def settled(self) -> int:
        """The place in the text that was fed up to which it is known what is removed."""
        return self._openings[0][1][0] if self._openings else self._length

    def close(self) -> str:
        """The rest, at the end of the text: what did not become a token."""
        while self._tags and self._openings and self._openings[-1][0].startswith(UNFINISHED):
            self._remove(self._openings.pop()[1])
        return self._release()

    def _take(self, character: str) -> str:
        if character == "<":
            self._openings.append(("<", [self._length]))
            return self._hold()
        if not self._openings:
            return self._after_given_up(character) if self._given_up else character
        opening, places = self._openings[-1]
        opening += character
        if self._is_whole(opening):
            self._openings.pop()
            self._waiting -= len(places)
            self._remove([*places, self._length])
            self.ended = opening in self._ends
            return self._release() if self.ended else ""
        if self._is_begun(opening):
            self._openings[-1] = (opening, [*places, self._length])
            return self._hold()
        return self._release() + character

    def _is_whole(self, text: str) -> bool:
        return text in self._tokens or bool(self._tags and TAG.fullmatch(text))

    def _is_begun(self, text: str) -> bool:
        return text in self._beginnings or bool(self._tags and TAG_BEGUN.fullmatch(text))

    def _hold(self) -> str:
        """One character more waits; what goes out for it."""
        self._waiting += 1
        if self._waiting <= _MOST_WAITING or len(self._openings) == 1:
            return ""
        self._given_up, places = self._openings.pop(0)
        self._waiting -= len(places)
        return self._given_up

    def _after_given_up(self, character: str) -> str:
        """A character right behind an opening that went out early."""
        text = self._given_up + character
        if self._is_whole(text):
            self._remove([self._length])
            return ""
        self._given_up = text if self._is_begun(text) else ""
        return character

    def _release(self) -> str:
        text = "".join(opening for opening, _ in self._openings)
        if text:
            self._openings.clear()
            self._waiting, self._given_up = 0, ""
        return text

    def _remove(self, places: list[int]) -> None:
        for place in places:
            insort(self.removed, place)
