"""What the tests of pictures share: reading cells back out of them, and transformers' own visualizer."""

from __future__ import annotations

import base64
import importlib.machinery
import json
import sys
import types
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from quarterdeck.visualize.values import State

SEEN = (State.SEES, State.ITSELF)
SVG = "{http://www.w3.org/2000/svg}"
_SIGNS = {
    "■": State.SEES,
    "◆": State.ITSELF,
    "·": State.LATER,
    "×": State.PADDING,
    "○": State.EMPTY,
    "-": State.OTHER_TEXT,
}
_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A parsed page: its scripts and elements; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"
        self.data: dict[str, Any] = json.loads(self.texts["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            name = str(self.elements[-1][1].get("id") or self.open[-1])
            self.texts[name] = self.texts.get(name, "") + data

    def states(self, row: int = 0) -> Tensor:
        """``[T, S]``."""
        found = self.data["rows"][row]
        raw = torch.frombuffer(bytearray(base64.b64decode(found["states"])), dtype=torch.uint8)
        return raw.view(found["queries"], len(found["tokens"]))

    def weights(self, layer: int | None, head: int | None, row: int = 0) -> Tensor:
        """``[T, S]``, zero where nothing is seen."""
        found = self.data["rows"][row]
        raw = base64.b64decode(found["weights"][self.data["maps"].index([layer, head])])
        numbers = [int.from_bytes(raw[i : i + 2], "little") for i in range(0, len(raw), 2)]
        states = self.states(row)
        weights = torch.zeros(states.shape)
        weights[states <= State.ITSELF] = torch.tensor(numbers, dtype=torch.float32) / self.data["scale"]
        return weights


def svg_states(picture: str) -> list[Tensor]:
    """The states of every grid of an SVG: each rectangle is as many cells as it is long."""
    grids = []
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        if group.get("class") != "cells":
            continue
        cells: dict[tuple[int, int], int] = {}
        for rect in group.findall(f"{SVG}rect"):
            size = float(rect.get("height", ""))
            line, first, count = (round(float(rect.get(name, "")) / size) for name in ("y", "x", "width"))
            for column in range(first, first + count):
                assert (line, column) not in cells
                cells[line, column] = State[rect.get("class", "").upper().replace("-", "_")]
        shape = tuple(1 + max(place[axis] for place in cells) for axis in (0, 1))
        assert len(cells) == shape[0] * shape[1]
        grids.append(torch.tensor([[cells[i, j] for j in range(shape[1])] for i in range(shape[0])], dtype=torch.uint8))
    return grids


def text_states(picture: str, queries: int, keys: int) -> list[Tensor]:
    """The states of every grid of a text that is wide enough for a gap between cells."""
    rows = []
    for line in picture.splitlines():
        cells = line[-(2 * keys - 1) :].split(" ")
        if len(cells) == keys and all(cell in _SIGNS for cell in cells):
            rows.append([int(_SIGNS[cell]) for cell in cells])
    assert len(rows) % queries == 0
    return [torch.tensor(rows[i : i + queries], dtype=torch.uint8) for i in range(0, len(rows), queries)]


def seen(states: Tensor) -> Tensor:
    """Where a picture shows that the query sees the key."""
    return states <= State.ITSELF


def peer_visualizer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' class; it imports PIL for models of images, which this one is not."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        for name in ("PIL", "PIL.Image"):
            stand_in = types.ModuleType(name)
            stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, stand_in)
        monkeypatch.setattr(sys.modules["PIL"], "Image", sys.modules["PIL.Image"], raising=False)
    from transformers.utils.attention_visualizer import AttentionMaskVisualizer

    return AttentionMaskVisualizer
