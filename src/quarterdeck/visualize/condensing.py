"""Grids that fit: neighbouring tokens drawn as one, where a picture has not the room for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quarterdeck.visualize.values import Role, Row, State


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells of ``block`` by ``block`` tokens (fewer at the ends).

    Attributes:
        block: tokens of a cell's side.
        rows: places among the keys of the queries of each line, ``[first, last + 1)``.
        columns: places of the keys of each column, likewise.
        states: ``[rows, columns]``: the state of a cell of one kind, `State.SEES` if any query in it sees any key.
        seen: ``[rows, columns]``: which part of it is seen, in 0 to 1.
        weights: ``[rows, columns]``: the largest weight in it.
    """

    block: int
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    states: Tensor
    seen: Tensor
    weights: Tensor | None


def make_grid(row: Row, weights: Tensor | None, most_columns: int) -> Grid:
    """The cells of a row in at most ``most_columns`` columns; ``weights`` is ``[T, S]``."""
    queries, keys = row.allowed.shape
    block = -(-keys // max(most_columns, 1))
    rows, columns = _ranges(row.start, row.start + queries, block), _ranges(0, keys, block)
    if block == 1:
        return Grid(1, rows, columns, row.states, row.allowed.float(), weights)
    first_state = -_pooled(-row.states.float(), block, "largest")
    seen = _pooled(row.allowed.float(), block, "mean")
    # a block of hidden cells of several kinds shows the first kind; with anything seen in it, that it sees
    states = torch.where(seen > 0, torch.full_like(seen, float(State.SEES)), first_state).to(torch.uint8)
    return Grid(block, rows, columns, states, seen, None if weights is None else _pooled(weights, block, "largest"))


def _ranges(begin: int, end: int, block: int) -> tuple[tuple[int, int], ...]:
    return tuple((first, min(first + block, end)) for first in range(begin, end, block))


def _pooled(cells: Tensor, block: int, how: str) -> Tensor:
    """``[T, S]`` to ``[T / block, S / block]``; incomplete blocks at the ends count what they have."""
    pool = functional.max_pool2d if how == "largest" else functional.avg_pool2d
    pooled: Tensor = pool(cells[None], block, ceil_mode=True)[0]
    return pooled


def bands(row: Row, ranges: Sequence[tuple[int, int]]) -> list[tuple[str, Role, int, int]]:
    """Sections over the lines of a grid: name, role, first line, line behind the last; by the first token of a line."""
    found: list[tuple[str, Role, int, int]] = []
    previous = None
    for line, (first, _) in enumerate(ranges):
        section = row.section_of(first)
        if section is previous:
            name, role, start, _ = found[-1]
            found[-1] = (name, role, start, line + 1)
        else:
            found.append((section.name, section.role, line, line + 1))
        previous = section
    return found
