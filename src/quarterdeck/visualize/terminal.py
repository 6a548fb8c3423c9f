"""Attention as text for terminals: one line per query, as wide as there is room."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.visualize.condensing import Grid, bands, make_grid
from quarterdeck.visualize.palette import heat_top, percent
from quarterdeck.visualize.values import MEANINGS, Row, State, shortened, token_label, used_states

_SIGNS = {
    State.SEES: "■",
    State.ITSELF: "◆",
    State.LATER: "·",
    State.PADDING: "×",
    State.EMPTY: "○",
    State.OTHER_TEXT: "-",
    State.TOO_FAR: "-",
}
_HEAT = ((0.05, "░"), (0.2, "▒"), (0.5, "▓"), (float("inf"), "█"))
"""Signs for weights below each limit, a fraction of the largest that matter."""

_PARTLY = "▣"
_COLORS = {State.SEES: "34", State.ITSELF: "33"}  # the terminal's own blue and yellow; what is hidden is faint
_FAINT = "2"
LEAST_WIDTH = 40


def terminal_width() -> int:
    """Columns of the terminal, 100 where there is none."""
    return max(shutil.get_terminal_size((100, 24)).columns, LEAST_WIDTH)


def draw_text(title: str, rows: Sequence[Row], weights: Sequence[Tensor | None], width: int, color: bool) -> str:
    """The picture in at most ``width`` columns; ``weights`` is ``[T, S]`` per row, or None for the mask.

    Raises:
        InputError: ``width`` is too small for any picture.
    """
    if width < LEAST_WIDTH:
        raise InputError(f"width is {width}, but a picture takes at least {LEAST_WIDTH} columns")
    lines = _wrapped(title, width)
    top = heat_top(rows, weights)
    lines += _wrapped("   ".join(_legend(rows, top if weights[0] is not None else None)), width)
    for row, chosen in zip(rows, weights, strict=True):
        shares = None if chosen is None else chosen / top
        lines += ["", *([row.name] if row.name else []), *_drawn(row, shares, width, color)]
    return "\n".join(lines)


def _legend(rows: Sequence[Row], top: float | None) -> list[str]:
    states = used_states(rows)
    if top is None:
        return [f"{_SIGNS[state]} {MEANINGS[state]}" for state in states]
    limits = [f"{sign} below {percent(top * limit)}" for limit, sign in _HEAT[:-1]]
    limits.append(f"{_HEAT[-1][1]} {percent(top * _HEAT[-2][0])} or more")
    return limits + [f"{_SIGNS[s]} {MEANINGS[s]}" for s in states if s not in (State.SEES, State.ITSELF)]


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for piece in text.split("   "):
        joined = f"{lines[-1]}   {piece}" if lines[-1] else piece
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(shortened(piece, width))
    return lines if lines[0] else lines[1:]


def _drawn(row: Row, weights: Tensor | None, width: int, color: bool) -> list[str]:
    keys = row.allowed.shape[1]
    names, numbers = _name_width(row, width), len(str(keys))
    spelled = min(16, max(_columns(token_label(token)) for token in row.queries)) if width >= 72 else 8
    left = names + bool(names) + numbers + spelled + 2
    step = 2 if left + 2 * keys <= width else 1
    grid = make_grid(row, weights, (width - left) // step)
    if grid.block > 1:
        numbers, spelled = 2 * numbers + 1, max(spelled - numbers - 1, 0)
    lines = textwrap.wrap(_note(grid), width) if grid.block > 1 else []
    lines += [" " * left + line for line in _heading(row, grid, step)]
    starts = {start: name for name, _, start, _ in bands(row, grid.rows)}
    for number, (first, last) in enumerate(grid.rows):
        where = str(first) if grid.block == 1 else f"{first}-{last - 1}"
        name = _fitted(starts.get(number, ""), names) + " " * bool(names)
        token = _fitted(token_label(row.tokens[first]), spelled)
        cells = _cells(grid, number, step, color)
        lines.append(f"{name}{where.rjust(numbers)} {token} {cells}".rstrip())
    return lines


def _note(grid: Grid) -> str:
    largest = "the largest weight in it" if grid.weights is not None else f"{_PARTLY} if only some of it is seen"
    return f"condensed: a cell is {grid.block} x {grid.block} tokens, {largest}; a wider terminal or a page shows each"


def _name_width(row: Row, width: int) -> int:
    if len(row.sections) < 2:
        return 0
    longest = max(_columns(section.name) for section in row.sections)
    return min(longest, 16 if width >= 72 else 8)


def _heading(row: Row, grid: Grid, step: int) -> list[str]:
    """Names of sections over their columns, and numbers of columns."""
    size = len(grid.columns) * step
    names, numbers = [" "] * size, [" "] * size
    for name, _, start, stop in bands(row, grid.columns) if len(row.sections) > 1 else ():
        room = (stop - start) * step - 1
        shown = shortened(name, room) if room >= 2 else ""
        names[start * step : start * step + len(shown)] = shown
    every = max(5, -(-(len(str(row.allowed.shape[1])) + 1) // step))
    for column in range(0, len(grid.columns), every):
        number = str(grid.columns[column][0])
        if column * step + len(number) <= size:
            numbers[column * step : column * step + len(number)] = number
    return [line for line in ("".join(names).rstrip(), "".join(numbers).rstrip()) if line]


def _cells(grid: Grid, line: int, step: int, color: bool) -> str:
    gap = " " * (step - 1)
    signs = []
    for column in range(len(grid.columns)):
        state = State(int(grid.states[line, column]))
        weight = None if grid.weights is None else float(grid.weights[line, column])
        sign = _sign(state, float(grid.seen[line, column]), weight)
        signs.append(_painted(sign, state, weight) if color else sign)
    return gap.join(signs)


def _sign(state: State, seen: float, weight: float | None) -> str:
    if state not in (State.SEES, State.ITSELF):
        return _SIGNS[state]
    if weight is not None:
        return next(sign for limit, sign in _HEAT if weight < limit)
    return _SIGNS[state] if seen == 1 else _PARTLY


def _painted(sign: str, state: State, weight: float | None) -> str:
    code = _COLORS.get(state, _FAINT)
    return f"\033[{'34' if weight is not None and state in _COLORS else code}m{sign}\033[0m"


def _columns(text: str) -> int:
    """Columns that a text takes: two for wide characters, none for those that combine."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fitted(text: str, columns: int) -> str:
    """Exactly so many columns: filled with spaces, or cut."""
    if _columns(text) > columns:
        while text and _columns(text) > columns - 1:
            text = text[:-1]
        text += "…" if columns else ""
    return text + " " * (columns - _columns(text))
