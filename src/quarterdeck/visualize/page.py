"""Attention as a page that needs nothing else: page.html filled with data, no network, no fonts from elsewhere.

The data is JSON in a script element of its own. Every cell's state is one byte; weights are 16-bit numbers, of the
cells that are seen, line by line: 65535 is 1. Both are base64.

Shapes: ``L`` layers, ``H`` heads, ``T`` queries, ``S`` keys.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from quarterdeck.visualize.palette import HEAT_EXPONENT, STATE_COLORS, heat_top, palettes
from quarterdeck.visualize.values import MEANINGS, Row, Token, label, token_label

MOST_NUMBERS = 3_000_000
"""Weights in a page, about 8 MB. Where all heads are more than that, some are left out, and the page says so."""

WEIGHT_SCALE = 65535

_PLACEHOLDER = re.compile(r"__(TITLE|COLORS|DATA)__")


def draw_page(model: str, rows: Sequence[Row], notes: Sequence[str], layer: int | None, head: int | None) -> str:
    """The page; it begins with the weights of ``layer`` and ``head`` (None: the mean)."""
    data = page_data(model, rows, notes, layer, head)
    contents = {
        "TITLE": html.escape(f"{data['heading']} · {model}"),
        "COLORS": _style_variables(),
        "DATA": _script_safe(json.dumps(data, ensure_ascii=False, separators=(",", ":"))),
    }
    template = resources.files("quarterdeck.visualize").joinpath("page.html").read_text(encoding="utf-8")
    return _PLACEHOLDER.sub(lambda match: contents[match[1]], template)


def page_data(
    model: str, rows: Sequence[Row], notes: Sequence[str], layer: int | None, head: int | None
) -> dict[str, Any]:
    """What the page knows."""
    weights = rows[0].weights
    kept = _kept_maps(rows, layer, head)
    said = list(notes)
    if weights is not None and len(kept) < (weights.shape[0] + 1) * (weights.shape[1] + 1):
        said.append("some heads left out, for size")
    return {
        "heading": "Attention mask" if weights is None else "Attention weights",
        "model": model,
        "notes": said,
        "layer": layer,
        "head": head,
        "exponent": HEAT_EXPONENT,
        "scale": WEIGHT_SCALE,
        "meanings": [MEANINGS[state] for state in MEANINGS],
        "stateColors": [STATE_COLORS[state] for state in MEANINGS],
        "palettes": palettes(),
        "maps": kept,
        "rows": [_row_data(row, kept) for row in rows],
    }


def _row_data(row: Row, maps: Sequence[tuple[int | None, int | None]]) -> dict[str, Any]:
    return {
        "name": row.name,
        "start": row.start,
        "queries": row.allowed.shape[0],
        "tokens": [_token_data(token) for token in row.tokens],
        "sections": [[section.name, section.role, section.start, section.stop] for section in row.sections],
        "states": _base64(row.states),
        "weights": [_weights_data(row, layer, head) for layer, head in maps],
        "tops": [_top(row, layer, head) for layer, head in maps],
    }


def _token_data(token: Token) -> list[Any]:
    """Spelled on an axis, kind, id, position, and spelled in full where that differs."""
    full, short = label(token.text), token_label(token)
    return [short, token.kind, token.id, token.position, *([full] if full != short else [])]


def _weights_data(row: Row, layer: int | None, head: int | None) -> str:
    chosen = row.chosen_weights(layer, head)
    assert chosen is not None
    return _base64((chosen[row.allowed] * WEIGHT_SCALE).round().to(torch.uint16))


def _top(row: Row, layer: int | None, head: int | None) -> float:
    return heat_top([row], [row.chosen_weights(layer, head)])


def _kept_maps(rows: Sequence[Row], layer: int | None, head: int | None) -> list[tuple[int | None, int | None]]:
    """Layers and heads of the page, None for means: all, or the chosen one, means, and what else there is room for."""
    weights = rows[0].weights
    if weights is None:
        return []
    room = MOST_NUMBERS // max(sum(int(row.allowed.sum()) for row in rows), 1)
    wanted = dict.fromkeys(_by_importance(weights, layer, head))
    kept = list(wanted)[: max(room, 1)]
    return sorted(kept, key=lambda pair: tuple(-1 if number is None else number for number in pair))


def _by_importance(weights: Tensor, layer: int | None, head: int | None) -> Iterator[tuple[int | None, int | None]]:
    layers, heads = range(weights.shape[0]), range(weights.shape[1])
    yield layer, head
    yield None, None
    yield from ((each, None) for each in layers)
    yield from ((layer, each) for each in heads)
    yield from ((each, head) for each in layers)
    yield from ((None, each) for each in heads)
    yield from ((each, other) for each in layers for other in heads)


def _style_variables() -> str:
    """The palettes as custom properties, the dark one for who prefers it or has chosen it."""

    def variables(colors: Mapping[str, Any]) -> str:
        return "".join(f"--{name}:{value};" for name, value in colors.items() if isinstance(value, str))

    light, dark = variables(palettes()["light"]), variables(palettes()["dark"])
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
    )


def _script_safe(text: str) -> str:
    """JSON that no HTML parser takes for markup, whatever is in it."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _base64(values: Tensor) -> str:
    """Little-endian bytes."""
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")
