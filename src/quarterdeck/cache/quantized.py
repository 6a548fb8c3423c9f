"""The cache in 8 or 4 bits per number: a quarter or half of the memory, recent tokens exact.

Positions are stored in two parts: the past in whole blocks of ``q_group_size`` tokens, quantized once and never again
(the layout is told in :mod:`quarterdeck.cache.groups`), and behind it the last ``residual_length`` tokens or more, as
they came. A block is written when there are ``residual_length`` tokens behind it.

A step of decoding on the CPU attends to the codes where they lie; whatever else is done reads them back into a
temporary of one layer's size, and hands that to the attention backend.

What is new in a call is always attended to exactly; only what came in earlier calls is read back from its bits. A
prompt that is run in chunks is therefore equal to one run at once up to the error of quantization, not to the last bit.

For c4ai-command-r-v01 (40 layers, 64 heads of 128 channels) a token takes ``2 * 40 * 64 * 128`` = 655,360 numbers:
1.25 MiB in 16 bit, 0.66 MiB in 8 bits (8.5 with scales) and 0.35 MiB in 4 bits (4.5): 160, 85 and 45 GiB at 131,072.

Shapes: ``B`` sequences, ``G`` key-value heads, ``T`` new positions, ``S`` positions to attend to, ``D`` head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quarterdeck.attention.dispatch import AttentionFunction
from quarterdeck.attention.mask import AttentionMask
from quarterdeck.attention.sdpa import sdpa_attention
from quarterdeck.cache.base import Cache, CacheLayer, CacheShape, check_block, check_config
from quarterdeck.cache.groups import Grouping, Packed, PackedBuffer, equal_groups
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.kernels import native
from quarterdeck.kernels.attention import MOST_WIDTH, Codes, Stored, decode
from quarterdeck.kernels.derivatives import is_transformed, wants_gradient
from quarterdeck.kernels.rows import FLOAT_TYPES

_PIECE = 1024
"""Positions that are quantized, or read back, at a time: it bounds the float32 copies made on the way."""

PER_TOKEN = 0
PER_CHANNEL = -1


@dataclass(frozen=True)
class QuantizedStorage:
    """How a layer stores; see :class:`QuantizedCache` for the fields."""

    nbits: int
    axis_key: int
    axis_value: int
    q_group_size: int
    residual_length: int

    def grouping(self, axis: int, width: int) -> Grouping:
        """The groups along an axis in heads of ``width`` channels."""
        if axis == PER_CHANNEL:
            return Grouping(self.nbits, self.q_group_size, 1)
        return Grouping(self.nbits, 1, equal_groups(width, self.q_group_size))


@dataclass(frozen=True)
class QuantizedBlocks:
    """All that a layer holds, as it is held: what a kernel needs to attend in place.

    Attributes:
        keys, values: the quantized past, views of ``n`` positions each.
        recent_keys, recent_values: ``[B, G, R, D]``, the exact rest that follows.
    """

    keys: Packed | None
    values: Packed | None
    recent_keys: Tensor
    recent_values: Tensor


class QuantizedLayer(CacheLayer):
    """Keys and values of one layer: quantized blocks, and an exact rest of less than a block more than asked for."""

    def __init__(self, storage: QuantizedStorage) -> None:
        self.storage = storage
        self._past: tuple[PackedBuffer, PackedBuffer] | None = None
        self._recent: tuple[Tensor, Tensor] | None = None  # [B, G, residual_length + block, D], filled from the left
        self._count = 0  # of which so many positions are filled

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # made when asked for
        """What is stored, read back: ``[B, G, S, D]``, a new tensor."""
        return None if self._recent is None else self._read(0, 0)

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]  # as keys
        """What is stored, read back: ``[B, G, S, D]``, a new tensor."""
        return None if self._recent is None else self._read(1, 0)

    def tensors(self) -> list[Tensor]:
        """The exact part, and the quantized one."""
        past = () if self._past is None else (*self._past[0].tensors, *self._past[1].tensors)
        return [*(self._recent or ()), *past]

    def update(self, key: Tensor, value: Tensor, cache_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Append; ``cache_position`` is not needed, what comes is next. No gradient reaches what is stored."""
        if self.get_seq_length() == 0:
            self.append(key, value)
            return key, value
        check_block(self._buffers(key)[0], key)
        read = []
        for which, new in enumerate((key, value)):
            whole = self._read(which, new.shape[2])
            whole[:, :, -new.shape[2] :] = new
            read.append(whole)
        self.append(key, value)
        return read[0], read[1]

    def append(self, key: Tensor, value: Tensor) -> None:
        """Store ``[B, G, T, D]`` without reading anything back; :meth:`blocks` then tells what to attend to."""
        check_block(self._buffers(key)[0], key)
        key, value = key.detach(), value.detach()
        block, count = self.storage.q_group_size, self._count + key.shape[2]
        moved = max(0, count - self.storage.residual_length) // block * block
        for which, new in enumerate((key, value)):
            self._append(which, new, moved)
        self._count = count - moved

    def _append(self, which: int, new: Tensor, moved: int) -> None:
        """Write behind the exact part; its oldest ``moved`` positions go to the quantized one."""
        assert self._recent is not None
        assert self._past is not None
        recent = self._recent[which]
        if not moved:
            recent[:, :, self._count : self._count + new.shape[2]] = new
            return
        whole = torch.cat((recent[:, :, : self._count], new), dim=2) if self._count else new
        step = max(_PIECE // self.storage.q_group_size, 1) * self.storage.q_group_size
        self._past[which].reserve(self._past[which].length + moved, whole)
        for start in range(0, moved, step):
            self._past[which].append(whole[:, :, start : min(start + step, moved)])
        recent[:, :, : whole.shape[2] - moved] = whole[:, :, moved:]

    def _buffers(self, key: Tensor) -> tuple[Tensor, Tensor]:
        if self._recent is None:
            batch, heads, _, width = key.shape
            room = self.storage.residual_length + self.storage.q_group_size
            with torch.inference_mode(False):  # what is made in inference mode could not be written to outside
                made = [torch.empty((batch, heads, room, width), dtype=key.dtype, device=key.device) for _ in range(2)]
            self._recent = made[0], made[1]
            axes = self.storage.axis_key, self.storage.axis_value
            past = [PackedBuffer(self.storage.grouping(axis, width), self.storage.q_group_size) for axis in axes]
            self._past = past[0], past[1]
        return self._recent

    def _read(self, which: int, spare: int) -> Tensor:
        """All positions in the type they came in, with room for ``spare`` more behind them."""
        assert self._recent is not None
        assert self._past is not None
        recent, past = self._recent[which], self._past[which]
        whole = recent.new_empty((*recent.shape[:2], past.length + self._count + spare, recent.shape[3]))
        past.unpack_into(whole, _PIECE // past.block * past.block or past.block)
        whole[:, :, past.length : past.length + self._count] = recent[:, :, : self._count]
        return whole

    def blocks(self) -> QuantizedBlocks:
        """What is stored, as it is stored.

        Raises:
            InputError: nothing is.
        """
        if self._recent is None or self._past is None:
            raise InputError("this layer of a QuantizedCache is empty: update it first")
        keys, values = self._past
        recent_keys, recent_values = (recent[:, :, : self._count] for recent in self._recent)
        if not keys.length:
            return QuantizedBlocks(None, None, recent_keys, recent_values)
        return QuantizedBlocks(keys.read(0, keys.length), values.read(0, values.length), recent_keys, recent_values)

    def segments(self, key: Tensor, value: Tensor) -> list[tuple[Stored, Stored]]:
        """What is stored and behind it new ``[B, G, T, D]``, as the kernels take it; nothing is stored or copied.

        Raises:
            InputError: rows, heads, width or type are not those of what is stored.
        """
        stored = self.blocks()
        check_block(stored.recent_keys, key)
        rest: list[tuple[Stored, Stored]] = [(stored.recent_keys, stored.recent_values), (key, value)]
        if stored.keys is None or stored.values is None:
            return rest
        return [(_codes(stored.keys), _codes(stored.values)), *rest]

    @property
    def spare(self) -> int:
        """Positions that can come before the next block is quantized."""
        return self.storage.residual_length + self.storage.q_group_size - 1 - self._count

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self._count + (0 if self._past is None else self._past[0].length)

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions; of a block that is cut, the rest is kept as read back."""
        if self._past is None or self._recent is None or length >= self.get_seq_length():
            return
        whole = length // self.storage.q_group_size * self.storage.q_group_size
        if length >= self._past[0].length:
            self._count = length - self._past[0].length
            return
        self._count = length - whole
        for recent, past in zip(self._recent, self._past, strict=True):
            past.crop(whole, recent[:, :, : self._count])

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self._past, self._recent, self._count = None, None, 0

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch."""
        if self._recent is not None and self._past is not None:
            keys, values = (recent.index_select(0, rows.to(recent.device)) for recent in self._recent)
            self._recent = keys, values
            for past in self._past:
                past.select(rows)


class QuantizedCache(Cache):
    """A cache without a limit that keeps old tokens in 8 or 4 bits.

    >>> cache = QuantizedCache(nbits=4)
    >>> model.generate(ids, past_key_values=cache, max_new_tokens=20)

    Memory is what it saves, and on the CPU the time of reading it: there, a step of decoding attends to the codes as
    they are (:mod:`quarterdeck.kernels.attention`). Elsewhere, and for more than one position, the past is read back
    into a temporary of one layer's exact size.

    Args:
        backend: ``None``, ``"quarterdeck"`` or ``"quanto"``: whatever it is, the arithmetic is ours and no other
            library is needed. The name is taken so that programs written for transformers run.
        config: the model's configuration; the name is checked and nothing else: layers appear as they are used.
        nbits: 8 or 4 bits per number, and 32 per group.
        axis_key: which keys form a group: -1 are ``q_group_size`` tokens of one channel, 0 are as many channels of
            one token.
        axis_value: the same for values.
        q_group_size: how large a group is; also the number of tokens that are quantized at a time. Channels are cut
            into equal groups of at most this size.
        residual_length: so many of the last tokens are exact, and up to ``q_group_size - 1`` more.

    Raises:
        InputError: a value that cannot be right.
        UnsupportedOptionError: a backend, a number of bits or an axis that other libraries have.
    """

    def __init__(
        self,
        backend: str | None = None,
        config: CacheShape | None = None,
        nbits: int = 4,
        axis_key: int = PER_CHANNEL,
        axis_value: int = PER_TOKEN,
        q_group_size: int = 64,
        residual_length: int = 128,
    ) -> None:
        super().__init__()
        _check_backend(backend)
        if config is not None:
            check_config(config)
        _check_bits(nbits)
        _check_axis("axis_key", axis_key)
        _check_axis("axis_value", axis_value)
        _check_count("q_group_size", q_group_size, 8)
        _check_count("residual_length", residual_length, 0)
        self.storage = QuantizedStorage(nbits, axis_key, axis_value, q_group_size, residual_length)

    def layer(self, layer_idx: int) -> CacheLayer:
        """The storage of one layer; new layers appear as they are asked for."""
        while len(self.layers) <= layer_idx:
            self.layers.append(QuantizedLayer(self.storage))
        return self.layers[layer_idx]

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
        """In place where it can be done, with sums in float32; else as every cache does."""
        layer = self.layer(layer_idx)
        is_step = attention is sdpa_attention and not dropout and _reads_in_place(query, key, value, mask)
        if is_step and isinstance(layer, QuantizedLayer) and layer.get_seq_length():
            output = decode(query, layer.segments(key, value), scale=scale, allowed=_visible(mask, query.shape[0]))
            layer.append(key, value)
            return output, None
        return super().attend(
            layer_idx, query, key, value, mask, attention, scale=scale, dropout=dropout, cache_position=cache_position
        )

    def key_length(self, new: int) -> int:
        """All that is stored and ``new`` more."""
        return self.get_seq_length() + new

    def get_max_length(self) -> int | None:
        """No limit."""
        return None

    def revocable(self) -> int | None:
        """As many as can be exact besides those that are; one more, and a block is rounded for good."""
        return min((layer.spare for layer in self.layers if isinstance(layer, QuantizedLayer)), default=None)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.storage.nbits} bits)"


def _codes(packed: Packed) -> Codes:
    return Codes(*packed.tensors, packed.grouping.bits, packed.grouping.tokens, packed.grouping.channels)


def _reads_in_place(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> bool:
    """Whether a step goes to our kernel: one position per sequence, on the CPU, and nobody wants a gradient.

    A program that is being compiled reads back: it can look into that, and not into native code.
    """
    if query.shape[2] != 1 or mask.explicit is not None or mask.documents is not None:
        return False
    if torch.compiler.is_compiling() or query.dtype not in FLOAT_TYPES or query.shape[3] > MOST_WIDTH:
        return False
    if wants_gradient(query, key, value) or is_transformed():
        return False
    return native.level_for(query, None) is not None


def _visible(mask: AttentionMask, rows: int) -> Tensor | None:
    """``[B, S]`` keys that the one query of each row sees; ``None`` for all."""
    if mask.sees_all:
        return None
    return mask.made("visible keys", lambda: mask.allowed()[:, 0, 0].expand(rows, -1).contiguous())


def _check_backend(backend: object) -> None:
    if backend is None or backend in ("quarterdeck", "quanto"):
        return
    if not isinstance(backend, str):
        raise InputError(f"backend is a {type(backend).__name__}, but must be a name; a configuration goes to config=")
    raise UnsupportedOptionError(
        f"backend={backend!r} is not there: leave it out, or write 'quanto'; the arithmetic is Quarterdeck's own"
    )


def _check_bits(nbits: object) -> None:
    if nbits in (1, 2, 3):
        raise UnsupportedOptionError(f"nbits={nbits!r} is not in this version: choose 4 or 8")
    if isinstance(nbits, bool) or nbits not in (4, 8):
        raise InputError(f"nbits={nbits!r}: it must be 4 or 8")


def _check_axis(name: str, axis: object) -> None:
    if isinstance(axis, bool) or axis not in (PER_TOKEN, PER_CHANNEL):
        raise UnsupportedOptionError(
            f"{name}={axis!r}: it must be 0 (groups of channels of one token) or -1 (groups of tokens of one channel)"
        )


def _check_count(name: str, count: object, least: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise InputError(f"{name}={count!r}: it must be a whole number of at least {least}")
