"""The cache in the memory of the host: the device holds two layers' keys and values at a time.

Each layer keeps all it stores on the host. While one layer computes, the next one's keys and values travel to its
device; what is new travels back, and nothing else does. With CUDA both go beside the computation, through pinned
memory; on a device without streams they are plain copies, and on the CPU nothing travels at all.

Positions come first in the buffers, ``[room, B, G, D]``: the stored ones are then one run of memory, that is one copy.

Shapes: ``B`` sequences, ``G`` key-value heads, ``T`` new positions, ``S`` positions to attend to, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quarterdeck.cache.base import CacheLayer, check_block
from quarterdeck.cache.lanes import Lane, Lanes
from quarterdeck.errors import InputError

_HEADROOM = 64
"""Least number of spare positions when buffers grow."""

Pair = tuple[Tensor, Tensor]


class OffloadedLayer(CacheLayer):
    """Keys and values of one layer on the host, and on the device while they are needed.

    Attributes:
        follower: the layer that is used next, which is sent for while this one computes.
    """

    def __init__(self, lanes: Lanes, limit: int | None = None) -> None:
        self._lanes = lanes  # the first attribute: a copy of the layer must wait for its copies before all else
        self.limit = limit
        self.follower: OffloadedLayer = self
        self._device: torch.device | None = None  # where keys come from and are attended to
        self._home: Pair | None = None  # on the host, [room, B, G, D]
        self._sent: Pair | None = None  # on the device, the same; on its way or there
        self._length = 0

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # a view of the buffer, made when asked for
        """What is stored, ``[B, G, S, D]`` on the host."""
        return self._stored(0)

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]  # as keys
        """What is stored, ``[B, G, S, D]`` on the host."""
        return self._stored(1)

    def _stored(self, which: int) -> Tensor | None:
        self._lanes.finish()
        return None if self._home is None else _heads_first(self._home[which][: self._length])

    def tensors(self) -> list[Tensor]:
        """What is kept on the host."""
        return [kept for kept in (self.keys, self.values) if kept is not None]

    def update(self, key: Tensor, value: Tensor, cache_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Append ``[B, G, T, D]``; returns all, on the device where the new ones are.

        While gradients are recorded they reach what is new, and nothing that is stored.
        """
        self._check(key, cache_position)
        end = self._length + key.shape[2]
        home = self._reserve(end, key)
        lane = self._lanes.to(key.device)
        if lane is None:
            return self._update_at_home(home, key, value, end)
        here = self._arrived(home, end, lane)
        if self.follower is not self:
            self.follower.send_for()
        for there, new in zip(here, (key, value), strict=True):
            there[self._length : end] = _positions_first(new.detach())
        lane.run(_copies(here, home, self._length, end), here)
        self._length = end
        if torch.is_grad_enabled():
            start = end - key.shape[2]
            keys, values = (_heads_first(there[:start]) for there in here)
            return torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        return _heads_first(here[0][:end]), _heads_first(here[1][:end])

    def _update_at_home(self, home: Pair, key: Tensor, value: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """The host is the device."""
        start, self._length = self._length, end
        for kept, new in zip(home, (key, value), strict=True):
            kept[start:end] = _positions_first(new.detach())
        if torch.is_grad_enabled():  # the graph must not find its tensors changed by the next step
            keys, values = (_heads_first(kept[:start]).clone() for kept in home)
            return torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        return _heads_first(home[0][:end]), _heads_first(home[1][:end])

    def _check(self, key: Tensor, cache_position: Tensor | None) -> None:
        if self._home is not None:
            check_block(_heads_first(self._home[0]), key)
        if self.limit is None:
            return
        end = self._length + key.shape[2]
        if end > self.limit:
            raise InputError(
                f"this StaticCache holds {self.limit} positions and {end} are needed; make it with a larger "
                "max_cache_len, or use a DynamicCache"
            )
        if cache_position is not None and cache_position.tolist() != list(range(self._length, end)):
            raise InputError(
                f"an offloaded cache appends: cache_position must be {self._length} to {end - 1}, not "
                f"{cache_position.tolist()}; leave it out, or use a StaticCache without offloading"
            )

    def allocate(self, batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the buffers at once, with the room of the limit."""
        assert self.limit is not None
        self._device = device
        self._home = self._made((self.limit, batch, heads, width), dtype)

    def _reserve(self, end: int, key: Tensor) -> Pair:
        """Buffers on the host with room for ``end`` positions."""
        self._device = key.device
        if self._home is not None and self._home[0].shape[0] >= end:
            return self._home
        room = self.limit or end + (max(end // 4, _HEADROOM) if self._home is not None else 0)
        self._lanes.finish()  # the host is about to read what copies may still be writing
        old, self._home = self._home, self._made((room, key.shape[0], key.shape[1], key.shape[3]), key.dtype)
        for kept, grown in zip(old or (), self._home, strict=False):
            grown[: self._length] = kept[: self._length]
        return self._home

    def _made(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pair:
        """Buffers on the host."""
        pinned = self._device is not None and self._device.type == "cuda"
        with torch.inference_mode(False):  # what is made in inference mode could not be written to outside
            return torch.empty(shape, dtype=dtype, pin_memory=pinned), torch.empty(
                shape, dtype=dtype, pin_memory=pinned
            )

    def send_for(self) -> None:
        """Let what is stored travel to the device, unless it is on its way."""
        lane = None if self._device is None else self._lanes.to(self._device)
        if lane is None or self._home is None or self._sent is not None or not self._length:
            return
        self._sent = self._on_device(self._home)
        lane.run(_copies(self._home, self._sent, 0, self._length), self._sent)

    def _arrived(self, home: Pair, end: int, lane: Lane) -> Pair:
        """What is stored, on the device, with room for ``end`` positions."""
        self.send_for()
        lane.wait()
        here, self._sent = self._sent, None
        if here is not None and here[0].shape[0] >= end:
            return here
        larger = self._on_device(home)
        for there, small in zip(larger, here or (), strict=False):
            there[: self._length] = small[: self._length]
        return larger

    def _on_device(self, like: Pair) -> Pair:
        with torch.inference_mode(False):  # as on the host: the next step may be in another mode
            return torch.empty_like(like[0], device=self._device), torch.empty_like(like[1], device=self._device)

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self._length

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions; the room stays."""
        self._length, self._sent = min(length, self._length), None

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self._lanes.finish()
        self._home, self._sent, self._length = None, None, 0

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch."""
        self._lanes.finish()
        self._sent = None
        if self._home is not None:
            old, shape = self._home, self._home[0].shape
            self._home = self._made((shape[0], rows.shape[0], *shape[2:]), old[0].dtype)
            for kept, chosen in zip(old, self._home, strict=True):
                chosen[: self._length] = kept[: self._length, rows.cpu()]


def _copies(source: Pair, target: Pair, start: int, end: int) -> Callable[[], None]:
    """Copies positions ``start`` to ``end`` of keys and values."""

    def copy() -> None:
        for there, here in zip(source, target, strict=True):
            here[start:end].copy_(there[start:end], non_blocking=True)

    return copy


def _positions_first(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1, 3)


def _heads_first(x: Tensor) -> Tensor:
    return x.permute(1, 2, 0, 3)


class OffloadedRing:
    """The layers of a cache in a circle: each sends for the next, and the last one for the first."""

    def __init__(self, limit: int | None = None, lanes: Lanes | None = None) -> None:
        self._lanes = lanes or Lanes()
        self._limit = limit
        self._layers: list[OffloadedLayer] = []

    def grown(self, count: int) -> list[OffloadedLayer]:
        """All layers, with ``count`` new ones at the end."""
        self._layers += [OffloadedLayer(self._lanes, self._limit) for _ in range(count)]
        for at, layer in enumerate(self._layers):
            layer.follower = self._layers[(at + 1) % len(self._layers)]
        return list(self._layers)
