"""Trims white space from both ends of a text that arrives in pieces."""

from __future__ import annotations


class Trimmer:
    """What it gives back, joined, is the ``strip()`` of what it was fed, joined.

    White space is what `str.isspace` says. It is withheld until something follows it, so there is nothing to close.
    """

    def __init__(self) -> None:
        self._started = False
        self._withheld: list[str] = []

    def feed(self, text: str) -> str:
        """The text that is now certain; it ends in something else than white space, or is empty."""
        if not self._started:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            if text:
                self._withheld.append(text)
            return ""
        certain = "".join([*self._withheld, body])
        self._withheld = [text[len(body) :]]
        self._started = True
        return certain
