"""A view of attention: a value that can be drawn as text, as SVG, or as a page.

Shapes: ``B`` sequences, ``L`` layers, ``H`` heads, ``T`` queries, ``S`` keys.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.visualize.page import draw_page
from quarterdeck.visualize.palette import Theme
from quarterdeck.visualize.svg import draw_svg
from quarterdeck.visualize.terminal import draw_text, terminal_width
from quarterdeck.visualize.values import Row

_FRAME_HEIGHT = 760


@dataclass(frozen=True, eq=False, repr=False)
class AttentionView:
    """The attention of one forward pass; made by `AttentionMaskVisualizer.view`.

    Attributes:
        model: what the model is called.
        rows: the sequences of the batch: tokens, sections, cells.
        notes: what else there is to say about the pass.
        layer, head: whose weights are drawn; None is the mean. A page can show all.
    """

    model: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    layer: int | None = None
    head: int | None = None

    @property
    def allowed(self) -> Tensor:
        """``[B, T, S]``, True where the query sees the key."""
        return torch.stack([row.allowed for row in self.rows])

    @property
    def weights(self) -> Tensor | None:
        """``[B, L, H, T, S]`` attention weights in float32, None for a mask alone."""
        found = [row.weights for row in self.rows if row.weights is not None]
        return torch.stack(found) if found else None

    @property
    def title(self) -> str:
        """What the picture shows."""
        if self.weights is None:
            return f"Attention mask · {self.model}"
        layer = "all layers" if self.layer is None else f"layer {self.layer}"
        head = "mean of heads" if self.head is None else f"head {self.head}"
        return f"Attention weights · {self.model} · {layer}, {head}"

    def select(self, *, layer: int | None = None, head: int | None = None) -> AttentionView:
        """The same view with the weights of another layer and head drawn; None is the mean.

        Raises:
            InputError: there are no weights, or no such layer or head.
        """
        weights = self.weights
        if weights is None:
            raise InputError("this view has no weights: make it with weights=True")
        for name, number, count in (("layer", layer, weights.shape[1]), ("head", head, weights.shape[2])):
            if number is not None and not 0 <= number < count:
                raise InputError(f"{name} is {number}, but must be in 0 to {count - 1}, or None for the mean")
        return replace(self, layer=layer, head=head)

    def text(self, width: int | None = None, *, color: bool = False) -> str:
        """The picture as lines of text.

        Args:
            width: columns at most; None: as wide as the terminal. Long texts are condensed, and it is said.
            color: with the terminal's colours.
        """
        heading = "   ".join((self.title, *self.notes))
        return draw_text(heading, self.rows, self._chosen(), terminal_width() if width is None else width, color)

    def svg(self, theme: Theme = "light") -> str:
        """The picture as an SVG document, ``"light"`` or ``"dark"``. More than 128 keys are condensed."""
        return draw_svg(self.title, " · ".join(self.notes), self.rows, self._chosen(), theme)

    def html(self) -> str:
        """A page that needs nothing else: every cell, and with weights every layer and head as far as it is wise."""
        return draw_page(self.model, self.rows, self.notes, self.layer, self.head)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture that the name asks for: ``.txt``, ``.svg``, ``.html`` or ``.htm``; returns the path.

        Raises:
            InputError: another ending, or a folder that does not exist.
        """
        target = Path(path)
        ways: Mapping[str, Callable[[], str]] = {
            ".txt": lambda: self.text(100) + "\n",
            ".svg": self.svg,
            ".html": self.html,
            ".htm": self.html,
        }
        if target.suffix.lower() not in ways:
            raise InputError(f"'{target.name}' does not say what to write: end it with {', '.join(ways)}")
        if not target.parent.is_dir():
            raise InputError(f"there is no folder '{target.parent}' to write {target.name} into: make it first")
        content = ways[target.suffix.lower()]()
        beside = target.with_name(f".{target.name}.part")
        beside.write_text(content, encoding="utf-8")
        beside.replace(target)
        return target

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        """One line, since the picture is long: ``print`` draws it."""
        return f"<{type(self).__name__}: {', '.join((self.title, *self.notes))}>"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        source = html.escape(self.html(), quote=True)
        style = f"width:100%;height:{_FRAME_HEIGHT}px;border:0;border-radius:10px"
        name = html.escape(self.title)
        return f'<iframe srcdoc="{source}" style="{style}" title="{name}" sandbox="allow-scripts"></iframe>'

    def _chosen(self) -> list[Tensor | None]:
        return [row.chosen_weights(self.layer, self.head) for row in self.rows]
