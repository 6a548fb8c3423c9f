"""What is drawn: tokens, sections of a text, and the state of every cell, as frozen values.

Shapes: ``L`` layers, ``H`` heads, ``T`` queries, ``S`` keys. Queries are the last ``T`` of the tokens that there are,
so a query is a key as well; its place is its number among the keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

TokenKind = Literal["text", "control", "padding", "empty"]
Role = Literal["start", "system", "user", "chatbot", "document", "instructions", "text", "padding", "empty"]


class State(IntEnum):
    """What a cell says about a query and a key."""

    SEES = 0
    ITSELF = 1
    LATER = 2
    PADDING = 3
    EMPTY = 4
    OTHER_TEXT = 5
    TOO_FAR = 6


MEANINGS = {
    State.SEES: "sees",
    State.ITSELF: "sees itself",
    State.LATER: "comes later",
    State.PADDING: "padding",
    State.EMPTY: "empty slot",
    State.OTHER_TEXT: "another text",
    State.TOO_FAR: "beyond the window",
}
"""What legends call each state."""


_CONTROL = re.compile(r"^<\|?([^<>|]+?)(?:_TOKEN)?\|?>$")


@dataclass(frozen=True)
class Token:
    r"""One key.

    Attributes:
        text: its text, or ``\xe2`` for bytes that are no character by themselves; ``""`` for an empty slot.
        id: its number in the vocabulary, None for an empty slot.
        position: what rotary embedding takes as its position, None for an empty slot.
        kind: what it is.
    """

    text: str
    id: int | None
    position: int | None
    kind: TokenKind


@dataclass(frozen=True)
class Section:
    """Neighbouring keys ``start`` to ``stop`` (not included) that belong together."""

    name: str
    role: Role
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence of a batch with its cells.

    Attributes:
        name: what to call it.
        tokens: ``S`` keys.
        sections: cover all keys, in their order.
        start: place of the first query; those before it are in the cache.
        allowed: ``[T, S]``, True where the query sees the key.
        weights: ``[L, H, T, S]`` in float32, how much each query looks at each key; None without a forward pass.
        texts: number of the packed text of each key; None where a row is one text.
    """

    name: str
    tokens: tuple[Token, ...]
    sections: tuple[Section, ...]
    start: int
    allowed: Tensor
    weights: Tensor | None = None
    texts: tuple[int, ...] | None = None

    @property
    def queries(self) -> tuple[Token, ...]:
        """``T`` queries."""
        return self.tokens[self.start : self.start + self.allowed.shape[0]]

    @cached_property
    def states(self) -> Tensor:
        """``[T, S]`` of `State`: `allowed`, and why not where it is False."""
        count, keys = self.allowed.shape
        query = torch.arange(self.start, self.start + count)[:, None]
        key = torch.arange(keys)[None, :]
        states = torch.full((count, keys), int(State.TOO_FAR), dtype=torch.uint8)
        if self.texts is not None:
            numbers = torch.tensor(self.texts)
            states[numbers[query.expand_as(states)] != numbers[key.expand_as(states)]] = State.OTHER_TEXT
        states[key.expand_as(states) > query] = State.LATER
        for kind, state in (("padding", State.PADDING), ("empty", State.EMPTY)):
            states[:, torch.tensor([token.kind == kind for token in self.tokens])] = state
        states[self.allowed] = State.SEES
        states[self.allowed & (key == query)] = State.ITSELF
        return states

    def chosen_weights(self, layer: int | None, head: int | None) -> Tensor | None:
        """``[T, S]``: the weights of a layer and head, their mean over those that are None."""
        if self.weights is None:
            return None
        layers = self.weights if layer is None else self.weights[layer : layer + 1]
        heads = layers if head is None else layers[:, head : head + 1]
        return heads.mean(dim=(0, 1))

    def section_of(self, place: int) -> Section:
        """The section of a key."""
        return next(section for section in self.sections if section.start <= place < section.stop)


def label(text: str) -> str:
    """A token's text in one line that no terminal or page takes for a command.

    Example: a space, the letter a and a line break are ``"␣a⏎"``.
    """
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text)


def token_label(token: Token) -> str:
    """What stands on an axis for a token; control tokens without what they all have in common.

    Example: ``<|START_OF_TURN_TOKEN|>`` is ``<START_OF_TURN>``.
    """
    if token.kind not in ("control", "padding"):
        return label(token.text)
    return label(_CONTROL.sub(r"<\1>", token.text))


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters, the last one a ``…`` if there are more."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def used_states(rows: Sequence[Row]) -> list[State]:
    """The states that occur, in their order: what a legend has to explain."""
    found = {int(value) for row in rows for value in torch.unique(row.states)}
    return [state for state in State if state in found]
