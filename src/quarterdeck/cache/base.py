"""The contract between a model and its key-value cache.

A model hands a layer's queries and new keys and values to :meth:`Cache.attend`, which stores them
(:meth:`Cache.update`) and calls the attention backend with whatever comes back. The model knows neither how they are
stored nor where; a cache knows nothing of masks, unless it attends to what it has stored by itself. All the model asks
besides is how many positions are there (:meth:`Cache.get_seq_length`) and how long the keys that come back will be
(:meth:`Cache.key_length`), so that a mask of that width can be made before the first layer runs.

Shapes: ``B`` sequences, ``G`` key-value heads, ``T`` new positions, ``S`` positions to attend to, ``D`` head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from quarterdeck.attention.dispatch import AttentionFunction
from quarterdeck.attention.mask import AttentionMask
from quarterdeck.errors import InputError


@runtime_checkable
class CacheShape(Protocol):
    """What a cache reads of a model configuration."""

    num_hidden_layers: int
    num_key_value_heads: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        ...


def check_config(config: object) -> None:
    """Refuse what is no configuration.

    Raises:
        InputError: ``config`` does not say what a :class:`CacheShape` says.
    """
    if not isinstance(config, CacheShape):
        raise InputError(f"config is a {type(config).__name__}, but must be a model's configuration: model.config")


def check_block(stored: Tensor, new: Tensor) -> None:
    """Refuse keys ``[B, G, T, D]`` that a write into ``stored`` would spread over its rows, or round to its type.

    Raises:
        InputError: rows, heads, width or type are not those of ``stored``.
    """
    for axis, name in ((0, "a batch of"), (1, "key-value heads:"), (3, "heads of width")):
        if stored.shape[axis] != new.shape[axis]:
            raise InputError(f"the cache holds {name} {stored.shape[axis]}, but the input has {new.shape[axis]}")
    if stored.dtype != new.dtype:
        raise InputError(f"the cache holds {stored.dtype}, but the input is {new.dtype}; make it with that dtype")


class CacheLayer(ABC):
    """The stored keys and values of one decoder layer.

    Attributes:
        keys: ``[B, G, S, D]`` (after norm and rotary positions), ``None`` while nothing is stored.
        values: ``[B, G, S, D]``, likewise.
    """

    keys: Tensor | None
    values: Tensor | None

    @abstractmethod
    def update(self, key: Tensor, value: Tensor, cache_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Store ``[B, G, T, D]`` and return ``[B, G, S, D]`` to attend to."""

    def tensors(self) -> list[Tensor]:
        """All that is kept; the first is ``[B, G, ...]`` of the type and on the device of what comes in."""
        return [kept for kept in (self.keys, self.values) if kept is not None]

    @abstractmethod
    def get_seq_length(self) -> int:
        """Positions stored."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in the given order; rows may repeat."""

    def rearrange(self, rows: Tensor, start: int) -> None:
        """`select` of as many rows as there are, where what is before ``start`` is alike and may stay."""
        self.select(rows)


class Cache(ABC):
    """Keys and values of all layers of a model; see the module's text for the contract."""

    is_compileable: bool = False
    """Whether a step that uses it may be compiled: same shapes and addresses at every step."""

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []

    @abstractmethod
    def layer(self, layer_idx: int) -> CacheLayer:
        """The storage of one layer, made on first use where the cache is open-ended."""

    @abstractmethod
    def key_length(self, new: int) -> int:
        """How many keys :meth:`update` will return for ``new`` more positions."""

    @abstractmethod
    def get_max_length(self) -> int | None:
        """The most positions that fit, ``None`` without a limit."""

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values ``[B, G, T, D]``; returns what to attend to, ``[B, G, S, D]``.

        ``cache_position`` ``[T]`` says where they belong in a cache of fixed size; a growing cache appends.
        """
        return self.layer(layer_idx).update(key, value, cache_position)

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        attention: AttentionFunction,
        *,
        scale: float,
        dropout: float = 0.0,
        cache_position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`update` with ``key`` and ``value``, then ``attention`` to what comes back.

        Returns what ``attention`` does: ``[B, H, T, D]``, and weights or ``None``.
        """
        key, value = self.update(key, value, layer_idx, cache_position)
        return attention(query, key, value, mask, scale=scale, dropout=dropout)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions stored so far (of layer ``layer_idx``; within ``forward`` layers fill one after the other)."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def revocable(self) -> int | None:
        """So many positions may be appended and cropped again without a trace, ``None`` without a limit."""
        return None

    def get_max_cache_shape(self) -> int:
        """The most positions that fit, -1 without a limit (the name that transformers uses)."""
        limit = self.get_max_length()
        return -1 if limit is None else limit

    def crop(self, max_length: int) -> None:
        """Keep the first ``max_length`` positions; a negative number removes that many from the end.

        Raises:
            InputError: more are to be removed than there are.
        """
        length = self.get_seq_length()
        target = length + max_length if max_length < 0 else max_length
        if target < 0:
            raise InputError(f"cannot remove {-max_length} positions from a cache that holds {length}")
        if target < length:
            for layer in self.layers:
                layer.crop(target)

    def reset(self) -> None:
        """Forget everything."""
        for layer in self.layers:
            layer.reset()

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in the given order; rows may repeat."""
        for layer in self.layers:
            layer.select(rows)

    def rearrange(self, rows: Tensor, start: int) -> None:
        """`select` of as many rows as there are, each alike to the one it takes the place of before ``start``.

        So it is with the beams of a prompt, and only what they have added needs to be moved.
        """
        for layer in self.layers:
            layer.rearrange(rows, start)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The name that transformers uses for :meth:`select`."""
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The name that transformers uses for :meth:`select`."""
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch ``repeats`` times, neighbours together."""
        stored = self._some_tensor()
        if stored is not None:
            self.select(torch.arange(stored.shape[0], device=stored.device).repeat_interleave(repeats))

    @property
    def rows(self) -> int | None:
        """``B``, the sequences that are stored; ``None`` while nothing is."""
        stored = self._some_tensor()
        return None if stored is None else stored.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are held, room that is not filled yet included."""
        storages = [kept.untyped_storage() for layer in self.layers for kept in layer.tensors()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def _some_tensor(self) -> Tensor | None:
        return next((kept for layer in self.layers for kept in layer.tensors()), None)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        limit = self.get_max_length()
        positions = f"{self.get_seq_length()} positions" + ("" if limit is None else f" of {limit}")
        stored = self._some_tensor()
        if stored is None:
            return f"{type(self).__name__}({len(self)} layers, empty)"
        place = f"batch of {stored.shape[0]}, {stored.dtype} on {stored.device}"
        return f"{type(self).__name__}({len(self)} layers, {positions}, {place})"

    def __getitem__(self, layer_idx: int) -> tuple[Tensor | None, Tensor | None]:
        return self.layers[layer_idx].keys, self.layers[layer_idx].values

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        return ((layer.keys, layer.values) for layer in self.layers)


def checked_cache(given: object) -> Cache:
    """What a caller gave as ``past_key_values``.

    Raises:
        InputError: it is no cache, or that of another library; says how to make one of it.
    """
    if isinstance(given, Cache):
        return given
    kind = type(given)
    pairs = "past_key_values.to_legacy_cache()" if hasattr(given, "to_legacy_cache") else "pairs of keys and values"
    raise InputError(
        f"past_key_values is a {kind.__module__}.{kind.__qualname__}, but must be a quarterdeck.Cache; "
        f"quarterdeck.DynamicCache.from_legacy_cache({pairs}) makes one"
    )
