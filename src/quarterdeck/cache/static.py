"""The cache of fixed size: allocated once, same addresses and shapes at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from quarterdeck.cache.base import Cache, CacheLayer, CacheShape, check_block, check_config
from quarterdeck.cache.offloaded import OffloadedLayer, OffloadedRing
from quarterdeck.errors import InputError


class StaticLayer(CacheLayer):
    """Zeroed buffers ``[B, G, max_cache_len, D]``, allocated with the first block's batch size, type and device.

    All of the buffer comes back from :meth:`update`; the mask hides what is not written yet. How much is written
    is counted here, never guessed from the contents: by a number where blocks simply follow one another, and on the
    device where a tensor says where they belong. That tensor is never read here, and no number changes, so that a
    step may be compiled once, or captured in a graph, and used for all positions. Only who asks for the length waits.
    """

    def __init__(self, max_cache_len: int) -> None:
        self.max_cache_len = max_cache_len
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._length = 0  # counted here, and also that of the device if _is_counted
        self._is_counted = True
        self._last: Tensor | None = None  # [1], the last place that a cache_position named

    def tensors(self) -> list[Tensor]:
        """Keys, values and the last place: all that a step writes to."""
        return [kept for kept in (self.keys, self.values, self._last) if kept is not None]

    def allocate(self, batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the buffers; done by the first :meth:`update` where it was not done before."""
        shape = (batch, heads, self.max_cache_len, width)
        with torch.inference_mode(False):  # what is made in inference mode could not be written to outside
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            self._last = torch.full((1,), -1, device=device)

    def update(self, key: Tensor, value: Tensor, cache_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write at ``cache_position`` ``[T]`` (behind what is there, if ``None``); returns the whole buffers."""
        keys, values = self._buffers(key)
        if cache_position is not None:
            self._write(keys, values, key, value, cache_position)
            return keys, values
        start = self.get_seq_length()
        end = start + key.shape[2]
        check_room(end, self.max_cache_len)
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        self._length = end
        return keys, values

    def _write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor, cache_position: Tensor) -> None:
        assert self._last is not None
        keys.index_copy_(2, cache_position, key)
        values.index_copy_(2, cache_position, value)
        self._last.clamp_(min=cache_position if cache_position.shape[0] == 1 else cache_position.amax())
        self._is_counted = False

    def _buffers(self, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.allocate(key.shape[0], key.shape[1], key.shape[3], key.dtype, key.device)
        assert self.keys is not None
        assert self.values is not None
        check_block(self.keys, key)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions written; waits for the device if a tensor said where, since last asked."""
        if not self._is_counted and self._last is not None:
            self._length, self._is_counted = max(self._length, int(self._last) + 1), True
        return self._length

    def share(self, other: StaticLayer) -> None:
        """Use the buffers of another, with what is in them."""
        self.keys, self.values, self._last = other.keys, other.values, other._last
        self._length, self._is_counted = other._length, other._is_counted

    def note_written(self) -> None:
        """Say that the device has written to the buffers without a call from here."""
        self._is_counted = False

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions; they are zeroed."""
        self._length = min(length, self.get_seq_length())
        if self.keys is not None and self.values is not None and self._last is not None:
            self.keys[:, :, length:].zero_()
            self.values[:, :, length:].zero_()
            self._last.clamp_(max=length - 1)

    def reset(self) -> None:
        """Forget everything; the buffers stay where they are."""
        self.crop(0)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, rows.to(self.keys.device))
            self.values = self.values.index_select(0, rows.to(self.values.device))

    def rearrange(self, rows: Tensor, start: int) -> None:
        """Move positions from ``start`` on; the buffers stay where they are."""
        for stored in (self.keys, self.values):
            if stored is not None:
                moved = stored[:, :, start:]
                moved.copy_(moved.index_select(0, rows.to(stored.device)))


class StaticCache(Cache):
    """A cache with room for ``max_cache_len`` positions.

    Args:
        config: the model's configuration.
        max_cache_len: positions per sequence, prompt and answer together.
        max_batch_size: sequences; buffers are then made at once. ``None`` takes the first input's rows, type and
            device.
        device: where the buffers are made, the CPU by default; needs ``max_batch_size``.
        dtype: type of the buffers, float32 by default; needs ``max_batch_size``.
        offloading: keep the buffers in the memory of the host, and on the device two layers' at a time. What comes
            back from :meth:`update` is then what is stored, and not all of the buffers; steps cannot be compiled.

    Raises:
        InputError: a length or a batch of no whole number from 1, ``device`` or ``dtype`` without ``max_batch_size``.
    """

    is_compileable: bool = True

    def __init__(
        self,
        config: CacheShape,
        max_cache_len: int,
        *,
        max_batch_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        offloading: bool = False,
    ) -> None:
        super().__init__()
        check_config(config)
        _check_count("max_cache_len", max_cache_len)
        self.max_cache_len = max_cache_len
        self.is_compileable = not offloading
        layers: list[StaticLayer] | list[OffloadedLayer]
        if offloading:
            layers = OffloadedRing(max_cache_len).grown(config.num_hidden_layers)
        else:
            layers = [StaticLayer(max_cache_len) for _ in range(config.num_hidden_layers)]
        if max_batch_size is not None:
            _check_count("max_batch_size", max_batch_size)
            place, kind = torch.device("cpu" if device is None else device), dtype or torch.float32
            for layer in layers:
                layer.allocate(max_batch_size, config.num_key_value_heads, config.head_dim, kind, place)
        elif device is not None or dtype is not None:
            raise InputError(
                "device and dtype say where buffers are made at once, which takes max_batch_size: give it, or leave "
                "them out and the first input decides"
            )
        self.layers = list(layers)

    @property
    def max_batch_size(self) -> int | None:
        """Rows of the buffers; ``None`` until they are made."""
        return self.rows

    def layer(self, layer_idx: int) -> CacheLayer:
        """The storage of one layer; InputError if there are not as many."""
        if layer_idx >= len(self.layers):
            raise InputError(
                f"this StaticCache has {len(self.layers)} layers and the model at least {layer_idx + 1}: make it with "
                "the configuration of this model"
            )
        return self.layers[layer_idx]

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`Cache`. A place beyond the end is refused, where looking at it makes nobody wait.

        That is on the CPU, in the first layer: the places of all layers are the same. Elsewhere, and in a compiled
        program, PyTorch itself stops at a place out of range.
        """
        is_looked_at = cache_position is not None and layer_idx == 0 and cache_position.device.type == "cpu"
        if cache_position is not None and is_looked_at and not torch.compiler.is_compiling():
            check_room(int(cache_position.max()) + 1, self.max_cache_len)
        return super().update(key, value, layer_idx, cache_position)

    def share(self, other: StaticCache) -> None:
        """Use the buffers of another cache of the same size, with what is in them."""
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            assert isinstance(layer, StaticLayer)
            assert isinstance(theirs, StaticLayer)
            layer.share(theirs)

    def note_written(self) -> None:
        """Say that the device has written to the buffers without :meth:`update`, as a recorded step does."""
        for layer in self.layers:
            assert isinstance(layer, StaticLayer)
            layer.note_written()

    def key_length(self, new: int) -> int:
        """The whole cache; where it is offloaded, what is stored and ``new`` more."""
        return self.max_cache_len if self.is_compileable else self.get_seq_length() + new

    def get_max_length(self) -> int | None:
        """``max_cache_len``."""
        return self.max_cache_len


def check_room(wanted: int, limit: int) -> None:
    """Refuse to write beyond the end."""
    if wanted > limit:
        raise InputError(
            f"this StaticCache holds {limit} positions and {wanted} are needed; make it with a larger max_cache_len, "
            "or use a DynamicCache"
        )


def _check_count(name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{name} is {count!r}, but must be a whole number of at least 1")
