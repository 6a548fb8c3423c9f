"""Ends a text before the first stop string in it, while it arrives, and never lets a part of one through."""

from __future__ import annotations

from collections.abc import Sequence


class StopGate:
    """Lets text through up to the stop string that begins first; of those that begin there, none counts more.

    Withholds the shortest end of the text with which a stop string may begin. What comes out, joined, is a function of
    what went in, joined.

    Attributes:
        stopped: a stop string was found; nothing more comes out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._withheld = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is now certain."""
        if self.stopped:
            return ""
        text = self._withheld + text
        found = min((place for place in map(text.find, self._stops) if place >= 0), default=len(text))
        begun = self._first_beginning(text, found)
        if begun < found:
            self._withheld = text[begun:]
            return text[:begun]
        self.stopped, self._withheld = found < len(text), ""
        return text[:found]

    def close(self) -> str:
        """The rest: what did not become a stop string that begins earlier."""
        text, self._withheld = self._withheld, ""
        if self.stopped:
            return ""
        found = min((place for place in map(text.find, self._stops) if place >= 0), default=len(text))
        self.stopped = found < len(text)
        return text[:found]

    def _first_beginning(self, text: str, limit: int) -> int:
        """The first place before ``limit`` from which the text may go on to be a stop string; ``limit`` if none."""
        for place in range(max(0, len(text) - self._longest + 1), limit):
            rest = text[place:]
            if any(stop.startswith(rest) for stop in self._stops if len(stop) > len(rest)):
                return place
        return limit
