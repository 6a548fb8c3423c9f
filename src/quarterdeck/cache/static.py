"""The cache of fixed size: allocated once, same addresses and shapes at every step."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from quarterdeck.cache.base import Cache, CacheLayer, check_block
from quarterdeck.errors import InputError


class CacheShape(Protocol):
    """What a cache reads of a model configuration."""

    num_hidden_layers: int
    num_key_value_heads: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        ...


class StaticLayer(CacheLayer):
    """Zeroed buffers ``[B, G, max_cache_len, D]``, allocated with the first block's batch size, type and device.

    All of the buffer comes back from :meth:`update`; the mask hides what is not written yet. How much is written
    is counted here, never guessed from the contents.
    """

    def __init__(self, max_cache_len: int) -> None:
        self.max_cache_len = max_cache_len
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._length = 0

    def allocate(self, batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the buffers; done by the first :meth:`update` where it was not done before."""
        shape = (batch, heads, self.max_cache_len, width)
        with torch.inference_mode(False):  # what is made in inference mode could not be written to outside
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, key: Tensor, value: Tensor, cache_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write at ``cache_position`` ``[T]`` (behind what is there, if ``None``); returns the whole buffers."""
        keys, values = self._buffers(key)
        if cache_position is None:
            end = self._length + key.shape[2]
            if end > self.max_cache_len:
                raise _full(end, self.max_cache_len)
            keys[:, :, self._length : end] = key
            values[:, :, self._length : end] = value
        else:
            end = int(cache_position.max()) + 1
            if end > self.max_cache_len:
                raise _full(end, self.max_cache_len)
            keys.index_copy_(2, cache_position, key)
            values.index_copy_(2, cache_position, value)
        self._length = max(self._length, end)
        return keys, values

    def _buffers(self, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.allocate(key.shape[0], key.shape[1], key.shape[3], key.dtype, key.device)
        assert self.keys is not None
        assert self.values is not None
        check_block(self.keys, key)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions written."""
        return self._length

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions; they are zeroed."""
        if self.keys is not None and self.values is not None:
            self.keys[:, :, length:].zero_()
            self.values[:, :, length:].zero_()
        self._length = min(length, self._length)

    def reset(self) -> None:
        """Forget everything; the buffers stay where they are."""
        self.crop(0)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, rows.to(self.keys.device))
            self.values = self.values.index_select(0, rows.to(self.values.device))


class StaticCache(Cache):
    """A cache with room for ``max_cache_len`` positions.

    Args:
        config: the model's configuration.
        max_cache_len: positions per sequence, prompt and answer together.
        max_batch_size: sequences; buffers are then made at once. ``None`` takes the first input's.
        device: where the buffers are made; needs ``max_batch_size``.
        dtype: type of the buffers; needs ``max_batch_size``.
    """

    is_compileable: ClassVar[bool] = True

    def __init__(
        self,
        config: CacheShape,
        max_cache_len: int,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if max_cache_len < 1:
            raise InputError(f"max_cache_len is {max_cache_len}, but must be at least 1")
        self.max_cache_len = max_cache_len
        layers = [StaticLayer(max_cache_len) for _ in range(config.num_hidden_layers)]
        if max_batch_size is not None:
            heads, place = config.num_key_value_heads, torch.device(device or "cpu")
            for layer in layers:
                layer.allocate(max_batch_size, heads, config.head_dim, dtype, place)
        self.layers = list(layers)

    def layer(self, layer_idx: int) -> CacheLayer:
        """The storage of one layer."""
        return self.layers[layer_idx]

    def key_length(self, new: int) -> int:
        """Always the whole cache."""
        return self.max_cache_len

    def get_max_length(self) -> int | None:
        """``max_cache_len``."""
        return self.max_cache_len


def _full(wanted: int, limit: int) -> InputError:
    return InputError(
        f"this StaticCache holds {limit} positions and {wanted} are needed; make it with a larger max_cache_len, "
        "or use a DynamicCache"
    )
