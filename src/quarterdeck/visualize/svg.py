"""Attention as SVG: for documents and slides. Cells of one colour that touch are one rectangle, so files stay small.

Every picture is one column of grids, one for each sequence: names of sections on two sides, then tokens, then a band
in the section's colour, then cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.visualize.condensing import Grid, bands, make_grid
from quarterdeck.visualize.palette import (
    HEAT_EXPONENT,
    STATE_COLORS,
    Theme,
    band_color,
    heat_color,
    heat_top,
    palettes,
    percent,
)
from quarterdeck.visualize.values import MEANINGS, Row, State, shortened, token_label, used_states

_MARGIN = 24
_SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_MOST_COLUMNS = 128
_LEGEND_GAP = 18.0
_SCALE_WIDTH = 168.0


@dataclass(frozen=True)
class _Layout:
    """Measures of one grid, in pixels: sides of a cell, where cells begin, and whether tokens are written."""

    cell: float
    left: float
    top: float
    has_labels: bool
    name_width: float


def draw_svg(title: str, subtitle: str, rows: Sequence[Row], weights: Sequence[Tensor | None], theme: Theme) -> str:
    """A whole SVG document; ``weights`` is ``[T, S]`` per row, or None for the mask.

    Raises:
        InputError: there is no such theme.
    """
    if theme not in palettes():
        raise InputError(f"theme is {theme!r}, but must be one of {', '.join(palettes())}")
    colors = palettes()[theme]
    top = heat_top(rows, weights)
    shares = [None if chosen is None else chosen / top for chosen in weights]
    grids = [make_grid(row, share, _MOST_COLUMNS) for row, share in zip(rows, shares, strict=True)]
    layouts = [_layout(row, grid) for row, grid in zip(rows, grids, strict=True)]
    y, width = float(_MARGIN + 44), 460.0
    body: list[str] = []
    for row, grid, layout in zip(rows, grids, layouts, strict=True):
        body += _grid(row, grid, layout, y, theme)
        y += layout.top + len(grid.rows) * layout.cell + 22
        width = max(width, layout.left + len(grid.columns) * layout.cell + _MARGIN)
    legend, height = _legend(rows, None if weights[0] is None else top, y + 4, width, theme)
    note = subtitle if grids[0].block == 1 else f"{subtitle} · each cell is {grids[0].block} × {grids[0].block} tokens"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" font-family="{_SANS}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:g}" height="{height:g}" rx="10" fill="{colors["paper"]}"/>',
        _text(_MARGIN, _MARGIN + 10, title, colors["ink"], 15, weight=600),
        _text(_MARGIN, _MARGIN + 29, note, colors["soft"], 11.5),
    ]
    return "\n".join([*head, *body, *legend, "</svg>"]) + "\n"


def _layout(row: Row, grid: Grid) -> _Layout:
    columns = len(grid.columns)
    cell = float(max(18 if columns <= 24 else 14 if columns <= 56 else 9 if columns <= 80 else 6, 1))
    has_labels = cell >= 14 and grid.block == 1
    longest = max((len(_spelled(row, place)) for place, _ in grid.columns), default=0)
    label_width = min(longest, 18) * 6.7 + 12 if has_labels else 8
    name_width = min(max(len(section.name) for section in row.sections), 18) * 6.4 + 10 if len(row.sections) > 1 else 0
    top = (16 if len(row.sections) > 1 else 0) + label_width + 8 + (16 if row.name else 0)
    return _Layout(cell, _MARGIN + name_width + label_width + 8, top, has_labels, name_width)


def _grid(row: Row, grid: Grid, layout: _Layout, y: float, theme: Theme) -> Iterator[str]:
    colors = palettes()[theme]
    if row.name:
        yield _text(_MARGIN, y + 10, row.name, colors["ink"], 12, weight=600)
    top = y + layout.top
    yield from _bands(row, grid, layout, top, theme)
    if layout.has_labels:
        yield from _labels(row, grid, layout, top, colors["ink"])
    yield f'<g class="cells" transform="translate({layout.left:g} {top:g})" shape-rendering="crispEdges">'
    if int(State.EMPTY) in grid.states:
        yield _slots(layout.cell, theme)
    for line in range(len(grid.rows)):
        yield from _runs(grid, line, layout.cell, theme)
    if layout.cell >= 8:
        width, height = len(grid.columns) * layout.cell, len(grid.rows) * layout.cell
        lines = [f"M{i * layout.cell:g} 0V{height:g}" for i in range(len(grid.columns) + 1)]
        lines += [f"M0 {i * layout.cell:g}H{width:g}" for i in range(len(grid.rows) + 1)]
        yield f'<path d="{"".join(lines)}" stroke="{colors["grid"]}" stroke-width="1" fill="none"/>'
    yield "</g>"


def _runs(grid: Grid, line: int, cell: float, theme: Theme) -> Iterator[str]:
    """One line of cells; neighbours of one state and colour are one rectangle."""
    looks = [_look(grid, line, column, theme) for column in range(len(grid.columns))]
    start = 0
    for column in range(1, len(looks) + 1):
        if column == len(looks) or looks[column] != looks[start]:
            name, color = looks[start]
            fill = f"url(#{_slots_id(cell, theme)})" if name == "empty" else color
            place = f'x="{start * cell:g}" y="{line * cell:g}" width="{(column - start) * cell:g}" height="{cell:g}"'
            yield f'<rect class="{name}" {place} fill="{fill}"/>'
            start = column


def _slots(cell: float, theme: Theme) -> str:
    """What empty slots are filled with: a dot in each."""
    colors = palettes()[theme]
    return (
        f'<pattern id="{_slots_id(cell, theme)}" width="{cell:g}" height="{cell:g}" patternUnits="userSpaceOnUse">'
        f'<rect width="{cell:g}" height="{cell:g}" fill="{colors["empty"]}"/>'
        f'<circle cx="{cell / 2:g}" cy="{cell / 2:g}" r="1.5" fill="{colors["empty-band"]}"/></pattern>'
    )


def _slots_id(cell: float, theme: Theme) -> str:
    return f"slots-{cell:g}-{theme}"


def _look(grid: Grid, line: int, column: int, theme: Theme) -> tuple[str, str]:
    state = State(int(grid.states[line, column]))
    name = state.name.lower().replace("_", "-")
    if state not in (State.SEES, State.ITSELF):
        return name, palettes()[theme][STATE_COLORS[state]]
    if grid.weights is not None:
        return name, heat_color(float(grid.weights[line, column]), theme)
    return name, palettes()[theme][STATE_COLORS[state]]


def _bands(row: Row, grid: Grid, layout: _Layout, top: float, theme: Theme) -> Iterator[str]:
    if len(row.sections) < 2:
        return
    cell, left, soft = layout.cell, layout.left, palettes()[theme]["soft"]
    for name, role, start, stop in bands(row, grid.columns):
        color, size = band_color(role, theme), (stop - start) * cell
        x = left + start * cell
        place = f'x="{x:g}" y="{top - 7:g}" width="{size - 1:g}" height="4"'
        yield f'<rect {place} rx="2" fill="{color}">{_tip(name)}</rect>'
        room = int((size - 3) / 6)
        if room >= min(len(name), 4):
            yield _text(x, top - layout.top + (28 if row.name else 12), shortened(name, room), soft, 10.5)
    for name, role, start, stop in bands(row, grid.rows):
        color, y = band_color(role, theme), top + start * cell
        yield (
            f'<rect x="{left - 7:g}" y="{y:g}" width="4" height="{(stop - start) * cell - 1:g}" rx="2" '
            f'fill="{color}">{_tip(name)}</rect>'
        )
        if (stop - start) * cell >= 11:
            yield _text(_MARGIN, y + min(cell / 2 + 4, 13), shortened(name, 18), soft, 10.5)


def _labels(row: Row, grid: Grid, layout: _Layout, top: float, ink: str) -> Iterator[str]:
    cell, left = layout.cell, layout.left
    size = 11 if cell >= 16 else 10
    yield f'<g font-family="{_MONO}" font-size="{size}" fill="{ink}">'
    for line, (first, _) in enumerate(grid.rows):
        y = top + line * cell + cell / 2 + size * 0.35
        yield f'<text x="{left - 12:g}" y="{y:g}" text-anchor="end">{_escaped(_spelled(row, first))}</text>'
    for column, (first, _) in enumerate(grid.columns):
        x, y = left + column * cell + cell / 2 + size * 0.35, top - 12
        yield f'<text transform="translate({x:g} {y:g}) rotate(-90)">{_escaped(_spelled(row, first))}</text>'
    yield "</g>"


def _legend(rows: Sequence[Row], heat: float | None, y: float, width: float, theme: Theme) -> tuple[list[str], float]:
    """Its elements, and the height of the picture that ends below it; ``heat`` is the top of the scale of weights."""
    colors, x = palettes()[theme], float(_MARGIN)
    found: list[str] = []
    if heat is not None:
        found += _scale(x, y, heat, theme)
        x += _SCALE_WIDTH + 40
    for state in used_states(rows):
        if heat is not None and state in (State.SEES, State.ITSELF):
            continue
        needed = 18 + len(MEANINGS[state]) * 6.2
        if x + needed > width - _MARGIN:
            x, y = float(_MARGIN), y + _LEGEND_GAP
        found.append(
            f'<rect x="{x:g}" y="{y:g}" width="11" height="11" rx="2" fill="{colors[STATE_COLORS[state]]}" '
            f'stroke="{colors["line"]}"/>'
        )
        found.append(_text(x + 17, y + 9.5, MEANINGS[state], colors["soft"], 11))
        x += needed + 14
    return found, y + 11 + (16 if heat is not None else 0) + _MARGIN - 4


def _scale(x: float, y: float, top: float, theme: Theme) -> Iterator[str]:
    step = _SCALE_WIDTH / 40
    for i in range(40):
        fill = heat_color((i / 39) ** (1 / HEAT_EXPONENT), theme)
        yield f'<rect x="{x + i * step:g}" y="{y:g}" width="{step + 0.5:g}" height="11" fill="{fill}"/>'
    for share in (0.0, 0.0625, 0.25, 0.5625, 1.0):
        place, anchor = x + share**HEAT_EXPONENT * _SCALE_WIDTH, "middle" if share else "start"
        more = "+" if share == 1 and top < 1 else ""
        yield _text(place, y + 24, percent(share * top) + more, palettes()[theme]["soft"], 10, anchor=anchor)


def _text(x: float, y: float, text: str, fill: str, size: float, *, weight: int = 400, anchor: str = "start") -> str:
    extra = (f' font-weight="{weight}"' if weight != 400 else "") + (
        f' text-anchor="{anchor}"' if anchor != "start" else ""
    )
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}"{extra}>{_escaped(text)}</text>'


def _spelled(row: Row, place: int) -> str:
    return shortened(token_label(row.tokens[place]), 18)


def _tip(name: str) -> str:
    return f"<title>{_escaped(name)}</title>"


def _escaped(text: str) -> str:
    """Text for XML, without the few characters that XML cannot hold at all."""
    return escape("".join(c if c.isprintable() or c == " " else "\ufffd" for c in text))
