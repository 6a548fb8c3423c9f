"""The last lines on a terminal, redrawn where they change."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

_ERASE_TO_END_OF_LINE = "\x1b[K"
_ERASE_BELOW = "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_UP = "\x1b[{}A"


class LiveRegion:
    """Lines below all that was printed before, of which only the changed ones are written again.

    The cursor is at the beginning of the line below it. It is never higher than the terminal, less a line, since what
    has scrolled away cannot be changed: of longer texts it has the end.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: list[str] = []
        self._width = console.width

    def show(self, fixed: Sequence[str], growing: Sequence[str]) -> None:
        """Print ``fixed`` for good in place of the region, and make ``growing`` the region below it.

        Lines hold no line breaks, and no sequences that move the cursor.
        """
        if self._console.width != self._width:  # what is on the screen was wrapped anew: leave it as it is
            self._shown, self._width = [], self._console.width
        region = list(growing[-max(self._console.height - 1, 1) :])
        wanted = [*fixed, *region]
        same = _common(self._shown, wanted)
        pieces = [_UP.format(len(self._shown) - same)] if len(self._shown) > same else []
        for number, line in enumerate(wanted[same:], start=same):
            # a region's lines must not be taken for wider than they are, so they never wrap
            pieces.append(line if number < len(fixed) else f"{_NO_WRAP}{line}{_WRAP}")
            pieces.append(f"{_ERASE_TO_END_OF_LINE}\n")
        if len(self._shown) > len(wanted):
            pieces.append(_ERASE_BELOW)
        self._shown = region
        if pieces:
            self._console.file.write("".join(pieces))
            self._console.file.flush()


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many lines at the beginning are alike."""
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))
