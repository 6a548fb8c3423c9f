"""The colours of all pictures, from palette.json: one set for light paper, one for dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

from torch import Tensor

from quarterdeck.visualize.values import Role, Row, State

Theme = Literal["light", "dark"]

STATE_COLORS: Mapping[State, str] = {
    State.SEES: "sees",
    State.ITSELF: "itself",
    State.LATER: "hidden",
    State.PADDING: "padding",
    State.EMPTY: "empty",
    State.OTHER_TEXT: "other",
    State.TOO_FAR: "other",
}
"""Names of the colours of cells."""

HEAT_EXPONENT = 0.5
"""Weights are drawn by their square root: most are small, and the differences among them are what one looks for."""

_TOPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@cache
def palettes() -> Mapping[str, Mapping[str, Any]]:
    """Colours by theme and name."""
    text = resources.files("quarterdeck.visualize").joinpath("palette.json").read_text(encoding="utf-8")
    loaded: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return loaded


def band_color(role: Role, theme: Theme) -> str:
    """The colour of a section."""
    color: str = palettes()[theme][f"{role}-band" if role in ("padding", "empty") else role]
    return color


def heat_top(rows: Sequence[Row], weights: Sequence[Tensor | None]) -> float:
    """The weight that gets the strongest colour, as do larger ones: so that 1 in 200 does, rounded up to 1, 2 or 5.

    In long texts all weights are small, and on a scale to 100% they would all look alike.

    Args:
        rows: the sequences.
        weights: ``[T, S]`` of each, or None.
    """
    tops = [_top(chosen[row.allowed]) for row, chosen in zip(rows, weights, strict=True) if chosen is not None]
    return max(tops, default=1.0)


def percent(share: float) -> str:
    """A share in percent with two digits that count.

    Example: ``percent(0.0625)`` is ``6.2%``.
    """
    return f"{float(f'{100 * share:.2g}'):g}%"


def _top(weights: Tensor) -> float:
    if not weights.numel():
        return 1.0
    place = max(round(0.995 * weights.numel()), 1)
    value = float(weights.flatten().kthvalue(place).values)
    return next((top for top in _TOPS if top >= value * (1 - 1e-6)), 1.0)


def heat_color(weight: float, theme: Theme, steps: int = 48) -> str:
    """The colour of a weight as a fraction of the top, in 0 to 1; one of ``steps + 1``."""
    stops: list[str] = palettes()[theme]["heat"]
    place = round(min(max(weight, 0.0), 1.0) ** HEAT_EXPONENT * steps) / steps * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    ends = zip(_channels(stops[low]), _channels(stops[low + 1]), strict=True)
    mixed = (round(a + (b - a) * (place - low)) for a, b in ends)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
