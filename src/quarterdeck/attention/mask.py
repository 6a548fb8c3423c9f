"""Who sees whom: the one masking rule, in a form that every backend can realise its own way.

A query at position ``i`` sees a key at position ``j`` if and only if

* ``j <= i``: causal;
* ``i - j < window``, where the layer has a window;
* key ``j`` is not padding;
* both belong to the same document, where several are packed into a row.

:class:`AttentionMask` describes that in a few small tensors. ``eager`` makes it a matrix of numbers to add,
``sdpa`` a matrix of booleans, or nothing at all where it can tell from the shapes.

Shapes: ``B`` sequences, ``H`` heads, ``T`` queries, ``S`` keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from quarterdeck.errors import InputError

Made = TypeVar("Made")


@dataclass(frozen=True)
class AttentionMask:
    """Visibility between ``T`` queries and ``S`` keys for one forward pass.

    Attributes:
        queries: ``T``.
        keys: ``S``.
        device: where matrices are made.
        start: position of the first query; queries follow one another. Used unless ``positions`` is given.
        positions: ``[T]`` positions of the queries among the keys, where they do not simply follow ``start``.
        padding: ``[B, S]``, True for real tokens; ``None`` if all are real. May be shorter than ``S``: keys beyond
            it are not written yet, and causality hides them.
        documents: ``[B, S]`` document numbers of packed rows, each document in one piece; ``None`` if rows are single
            documents.
        window: how many positions back a query sees, itself included; ``None`` for all.
        explicit: a mask given by the caller, ``[B or 1, H or 1, T, S]``, used as it is in place of the rule;
            boolean (True: sees) or numbers to add to the scores.
    """

    queries: int
    keys: int
    device: torch.device
    start: int = 0
    positions: Tensor | None = None
    padding: Tensor | None = None
    documents: Tensor | None = None
    window: int | None = None
    explicit: Tensor | None = None
    _made: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> AttentionMask:
        """The same on another device, where matrices are made anew; itself if it is there."""
        if self.device == device:
            return self
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {name: one.to(device) for name, one in held.items() if isinstance(one, Tensor)}
        return replace(self, device=device, _made={}, **moved)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but causality decides, on positions known without looking at a tensor."""
        given = (self.positions, self.padding, self.documents, self.window, self.explicit)
        return all(item is None for item in given)

    @property
    def is_square_causal(self) -> bool:
        """Whether this is the plain triangle over as many keys as queries."""
        return self.is_plain and self.start == 0 and self.queries == self.keys

    @property
    def sees_all(self) -> bool:
        """Whether every query sees every key: one query, at the end."""
        return self.is_plain and self.queries == 1 and self.start == self.keys - 1

    def made(self, form: object, make: Callable[[], Made]) -> Made:
        """What ``make`` returned when ``form`` was first asked for: layers share what a backend makes of the mask."""
        if form not in self._made:
            self._made[form] = make()
        made: Made = self._made[form]
        return made

    def allowed(self) -> Tensor:
        """The rule as booleans ``[B or 1, 1, T, S]``, True where the query sees the key; made once."""
        return self.made(torch.bool, self._rule)

    def additive(self, dtype: torch.dtype) -> Tensor:
        """What to add to scores: 0 where the query sees the key, the most negative finite number elsewhere."""
        return self.made(dtype, lambda: self._numbers(dtype))

    def query_positions(self) -> Tensor:
        """``[T]`` positions of the queries among the keys."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.start, self.start + self.queries, device=self.device)

    def real_keys(self) -> Tensor | None:
        """``[B, S]`` as :attr:`padding`, False for keys beyond it."""
        if self.padding is None or self.padding.shape[1] == self.keys:
            return self.padding
        return torch.nn.functional.pad(self.padding, (0, self.keys - self.padding.shape[1]))

    def _rule(self) -> Tensor:
        if self.explicit is not None:
            return self.explicit
        key = torch.arange(self.keys, device=self.device)
        query = self.query_positions()
        distance = query[:, None] - key[None, :]  # [T, S]
        seen = distance >= 0
        if self.window is not None:
            seen = seen & (distance < self.window)
        seen = seen[None, None]  # [1, 1, T, S]
        real = self.real_keys()
        if real is not None:
            seen = seen & real[:, None, None, :]
        if self.documents is not None:
            own = self.documents[:, query]  # [B, T]
            seen = seen & (own[:, None, :, None] == self.documents[:, None, None, :])
        return seen

    def _numbers(self, dtype: torch.dtype) -> Tensor:
        allowed = self.allowed()
        if allowed.dtype != torch.bool:
            # nothing below what the type holds: as minus infinity, a row that sees nothing would become NaN
            return allowed.to(dtype).clamp(min=torch.finfo(dtype).min)
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)


def make_mask(
    attention_mask: Tensor | None,
    *,
    batch: int,
    queries: int,
    keys: int,
    start: int,
    positions: Tensor | None,
    device: torch.device,
    heads: int | None = None,
    documents: Tensor | None = None,
    window: int | None = None,
    has_padding: bool | None = None,
) -> AttentionMask:
    """Describe the mask of one forward pass from what the caller gave.

    Args:
        attention_mask: ``None``, ``[B, n]`` (1 for real tokens; ``n`` counts past and new ones), or a finished
            mask ``[B or 1, H or 1, T, S]`` that is used as it is.
        batch, queries, keys, start, positions, device, documents, window: see :class:`AttentionMask`.
        heads: ``H``; ``None`` leaves the second axis of a finished mask to the caller.
        has_padding: whether ``[B, n]`` holds zeros, where that is known; ``None`` looks, which waits for the device.

    Raises:
        InputError: an ``attention_mask`` that is no tensor or whose shape does not fit.
    """
    padding = explicit = None
    if attention_mask is not None:
        check_tensor("attention_mask", attention_mask)
        if attention_mask.ndim == 4:
            explicit = _checked_explicit(attention_mask, batch, heads, queries, keys).to(device)
        else:
            end = None if positions is not None else start + queries
            padding = _checked_padding(attention_mask, batch, keys, end).to(device)
            padding = padding if _counts(padding, keys, positions, has_padding) else None
    return AttentionMask(queries, keys, device, start, positions, padding, documents, window, explicit)


def _counts(padding: Tensor, keys: int, positions: Tensor | None, has_padding: bool | None) -> bool:
    """Whether ``padding`` must be kept. All real is as good as none, and much faster."""
    if positions is not None and padding.shape[1] < keys:
        return True  # it also says that the keys behind it are not there
    if has_padding is None:
        # a compiled program cannot look, and with positions there is a matrix in any case: nothing to win
        return torch.compiler.is_compiling() or positions is not None or not bool(padding.all())
    return has_padding


def _checked_padding(mask: Tensor, batch: int, keys: int, end: int | None) -> Tensor:
    """``end`` is the number of past and new tokens, ``None`` where only a tensor knows it."""
    least, most = (1, keys) if end is None else (end, max(end, keys))
    if mask.ndim != 2 or mask.shape[0] != batch or not least <= mask.shape[1] <= most:
        wanted = f"[{batch}, 1 to {keys}]" if end is None else f"[{batch}, {end}]"
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}, but must be {wanted} (past and new tokens) or a "
            f"4-D mask [{batch}, 1, queries, keys]"
        )
    return mask[:, :keys].to(torch.bool)


def _checked_explicit(mask: Tensor, batch: int, heads: int | None, queries: int, keys: int) -> Tensor:
    mask = mask[..., :keys]
    right_heads = heads is None or mask.shape[1] in (1, heads)
    if mask.shape[0] not in (1, batch) or not right_heads or mask.shape[2] != queries or mask.shape[3] != keys:
        raise InputError(
            f"the 4-D attention_mask has shape {list(mask.shape)}, but must be "
            f"[{batch} or 1, {heads or 'heads'} or 1, {queries}, {keys}]"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InputError(
            f"the 4-D attention_mask is {mask.dtype}, but must be boolean (True: sees) or floating (numbers to add); "
            "ones and zeros become the first by .bool()"
        )
    return mask


def check_tensor(name: str, value: object) -> None:
    """Refuse lists, dictionaries and arrays where a tensor belongs.

    Raises:
        InputError: ``value`` is no tensor.
    """
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} is a {type(value).__name__}, but must be a tensor: torch.tensor(...) makes one of numbers, "
            "return_tensors='pt' lets the tokenizer make it"
        )


def check_positions(position_ids: Tensor | None, cache_position: Tensor | None, batch: int, length: int) -> None:
    """Refuse positions that would be spread over tokens that they were not given for.

    Raises:
        InputError: ``position_ids`` that are not ``[batch or 1, length]``, a ``cache_position`` not ``[length]``.
    """
    for name, given in (("position_ids", position_ids), ("cache_position", cache_position)):
        if given is not None:
            check_tensor(name, given)
    if position_ids is not None and list(position_ids.shape) not in ([batch, length], [1, length]):
        raise InputError(
            f"position_ids has shape {list(position_ids.shape)}, but must be [{batch} or 1, {length}]: "
            "one for every new token"
        )
    if cache_position is not None and (list(cache_position.shape) != [length] or cache_position.is_floating_point()):
        raise InputError(
            f"cache_position has shape {list(cache_position.shape)} and type {cache_position.dtype}, but must be "
            f"[{length}] integers: one for every new token"
        )


def packed_documents(position_ids: Tensor) -> Tensor | None:
    """Document numbers of packed rows: a new one begins wherever a position does not follow the one before.

    ``[B, T]`` positions to ``[B, T]`` numbers from 0, or ``None`` if every row is one document; a compiled program
    cannot look at values, and numbers them in any case.
    """
    starts = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    return starts.cumsum(-1) if torch.compiler.is_compiling() or bool(starts.any()) else None
