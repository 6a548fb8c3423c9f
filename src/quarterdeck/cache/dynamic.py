"""The cache that grows: no limit, storage with headroom so that a step does not copy what is already there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from quarterdeck.cache.base import Cache, CacheLayer, CacheShape, check_block, check_config
from quarterdeck.cache.offloaded import OffloadedRing
from quarterdeck.errors import InputError

_HEADROOM = 64
"""Least number of spare positions when storage grows."""


class DynamicLayer(CacheLayer):
    """Keys and values in buffers that are longer than what they hold and grow by a quarter when full.

    The first block is kept as it comes (a prompt is not copied), and never written to: it may be the caller's.
    While gradients are recorded, blocks are concatenated instead: the graph may hold on to what is stored, even
    where keys need no gradient themselves, and must not find it changed.
    """

    def __init__(self) -> None:
        self._length = 0
        self._own_buffers = False
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # a view of the buffer, made when asked for
        """What is stored, ``[B, G, S, D]``."""
        return None if self._keys is None else self._keys[:, :, : self._length]

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]  # as keys
        """What is stored, ``[B, G, S, D]``."""
        return None if self._values is None else self._values[:, :, : self._length]

    def update(self, key: Tensor, value: Tensor, cache_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Append; ``cache_position`` is not needed, what comes is next."""
        end = self._length + key.shape[2]
        if self._keys is None or self._values is None:
            self._keys, self._values, self._own_buffers = key, value, False
            self._length = end
            return key, value
        check_block(self._keys, key)
        if torch.is_grad_enabled():
            self._keys = torch.cat([self._keys[:, :, : self._length], key], dim=2)
            self._values = torch.cat([self._values[:, :, : self._length], value], dim=2)
            self._own_buffers = False
        else:
            self._append(self._keys, self._values, key, value, end)
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _append(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor, end: int) -> None:
        """Write behind the first ``_length`` positions, into larger buffers if need be."""
        writable = self._own_buffers and keys.is_inference() == key.is_inference()
        if not writable or end > keys.shape[2]:
            keys, values = self._grown(keys, end), self._grown(values, end)
        keys[:, :, self._length : end] = key
        values[:, :, self._length : end] = value
        self._keys, self._values, self._own_buffers = keys, values, True

    def _grown(self, stored: Tensor, end: int) -> Tensor:
        room = end + max(end // 4, _HEADROOM)
        grown = stored.new_empty(*stored.shape[:2], room, stored.shape[3])
        grown[:, :, : self._length] = stored[:, :, : self._length].detach()
        return grown

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self._length

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions; the room stays."""
        self._length = min(length, self._length)

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self._length, self._keys, self._values = 0, None, None
        self._own_buffers = False

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch."""
        if self._keys is not None and self._values is not None:
            self._keys = self._keys[:, :, : self._length].index_select(0, rows.to(self._keys.device))
            self._values = self._values[:, :, : self._length].index_select(0, rows.to(self._values.device))
            self._own_buffers = False

    def rearrange(self, rows: Tensor, start: int) -> None:
        """Move positions from ``start`` on, within the buffers if these may be written to."""
        if self._keys is None or self._values is None or start >= self._length:
            return
        frozen = self._keys.is_inference() and not torch.is_inference_mode_enabled()
        if frozen or not self._own_buffers or torch.is_grad_enabled():
            self.select(rows)
            return
        for stored in (self._keys, self._values):
            moved = stored[:, :, start : self._length]
            moved.copy_(moved.index_select(0, rows.to(stored.device)))


class DynamicCache(Cache):
    """A cache without a limit; the default, and the one that defines how caches behave.

    >>> cache = DynamicCache()
    >>> keys, values = cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), layer_idx=0)
    >>> cache
    DynamicCache(1 layers, 3 positions, batch of 1, torch.float32 on cpu)

    Args:
        ddp_cache_data: pairs of keys and values ``[B, G, S, D]`` to begin with, one per layer.
        config: the model's configuration; the name is checked and nothing else: all layers grow alike.
        offloading: keep everything in the memory of the host, as an :class:`OffloadedCache` does.
    """

    def __init__(
        self,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
        config: CacheShape | None = None,
        offloading: bool = False,
    ) -> None:
        super().__init__()
        self._ring = OffloadedRing() if offloading else None
        if config is not None:
            check_config(config)
        if ddp_cache_data is not None and not isinstance(ddp_cache_data, Iterable):
            raise InputError(
                f"ddp_cache_data is a {type(ddp_cache_data).__name__}, but must be pairs of keys and values, one per "
                "layer; a configuration is given as config=..."
            )
        for layer_idx, (keys, values) in enumerate(ddp_cache_data or ()):
            self.update(keys, values, layer_idx)

    def layer(self, layer_idx: int) -> CacheLayer:
        """The storage of one layer; new layers appear as they are asked for."""
        missing = layer_idx + 1 - len(self.layers)
        if missing > 0 and self._ring is not None:
            self.layers = list(self._ring.grown(missing))
        elif missing > 0:
            self.layers += [DynamicLayer() for _ in range(missing)]
        return self.layers[layer_idx]

    def key_length(self, new: int) -> int:
        """All that is stored and ``new`` more."""
        return self.get_seq_length() + new

    def get_max_length(self) -> int | None:
        """No limit."""
        return None

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """One pair of tensors per layer, the format of older programs."""
        pairs = ((layer.keys, layer.values) for layer in self.layers)
        return tuple((keys, values) for keys, values in pairs if keys is not None and values is not None)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """A cache that holds the given pairs of tensors ``[B, G, S, D]``, one per layer."""
        return cls(past_key_values)


class OffloadedCache(DynamicCache):
    """A cache without a limit that lives in the memory of the host; see :mod:`quarterdeck.cache.offloaded`.

    It gives the numbers of a :class:`DynamicCache` on a device whose memory could not hold that: two layers' keys and
    values are there at a time. What it costs is the bus: every step reads all keys and values across it.

    >>> model.generate(ids, past_key_values=OffloadedCache(), max_new_tokens=20)

    Args:
        config: the model's configuration; the name is checked and nothing else.
    """

    def __init__(self, config: CacheShape | None = None) -> None:
        super().__init__(config=config, offloading=True)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """A cache that holds the given pairs of tensors ``[B, G, S, D]``, one per layer."""
        cache = cls()
        for layer_idx, (keys, values) in enumerate(past_key_values):
            cache.update(keys, values, layer_idx)
        return cache
