"""How quantized keys and values are written down: 8 or 4 bits per number, a scale and a minimum per group.

One formula for all of it. A tensor ``[B, G, T, D]`` is cut into groups of ``tokens`` neighbouring positions and
``channels`` neighbouring channels, and within a group ::

    x = code * scale + minimum          code in 0..255 or 0..15

Keys usually take groups of ``tokens = 64, channels = 1`` (some channels of keys are large in every token, and must not
spoil the others), values ``tokens = 1, channels = 64``: the choice of KIVI (Liu et al. 2024, arXiv:2402.02750), which
``benchmarks/cache_error.py`` measures here.

Layout, made to be read in place by kernels:

* ``codes``, 8 bits: uint8 ``[B, G, T, D]``;
* ``codes``, 4 bits: uint8 ``[B, G, T, D / 2]``: the low half of byte ``j`` is channel ``j``, the high half channel
  ``j + D / 2``, so that one mask and one shift give two runs of neighbouring channels;
* ``scales``, ``minimums``: float16 ``[B, G, T / tokens, D / channels]``.

Codes are unsigned, as the 8-bit dot products of x86 want one side; the other side is the query. Where ``channels`` is
1, a kernel multiplies the query by the scales once per ``tokens`` positions and then reads codes only; where ``tokens``
is 1, the same holds of the attention weights. Minimums add one number per group: ``sum(query) * minimum``.

Shapes: ``B`` sequences, ``G`` key-value heads, ``T`` positions, ``D`` head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FLOAT16_MAX = torch.finfo(torch.float16).max
_SMALLEST = 1e-30
"""Divisor for groups whose numbers are all the same: their codes do not matter, since their scale is 0."""

_TYPES = (torch.uint8, torch.float16, torch.float16)
"""Types of codes, scales and minimums."""


@dataclass(frozen=True)
class Grouping:
    """Which numbers share a scale, and how many bits each takes."""

    bits: int
    tokens: int
    channels: int


@dataclass(frozen=True)
class Packed:
    """A quantized tensor; see the module's text for the layout."""

    grouping: Grouping
    codes: Tensor
    scales: Tensor
    minimums: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales, minimums."""
        return self.codes, self.scales, self.minimums


def equal_groups(width: int, most: int) -> int:
    """Channels per group when ``width`` channels are cut into the fewest equal groups of at most ``most``.

    >>> equal_groups(128, 64), equal_groups(96, 64), equal_groups(32, 64)
    (64, 48, 32)
    """
    count = -(-width // most)
    while width % count:
        count += 1
    return width // count


def pack(x: Tensor, grouping: Grouping) -> Packed:
    """Quantize ``[B, G, T, D]``, ``T`` a multiple of ``grouping.tokens`` and ``D`` even.

    Scales and minimums are rounded to float16 first and codes computed with them as rounded, so that no number is
    further than half a step away, plus the rounding of its group's end points (float16 has steps of 6e-8 at least).
    """
    groups = _grouped(x.float(), grouping)  # [B, G, T/t, t, D/c, c]
    low, high = groups.amin((3, 5), keepdim=True), groups.amax((3, 5), keepdim=True)
    steps = 2**grouping.bits - 1
    minimums = low.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half()
    scales = ((high - low) / steps).clamp(max=_FLOAT16_MAX).half()
    codes = (groups - minimums.float()) / scales.float().clamp(min=_SMALLEST)
    codes = codes.round_().clamp_(0, steps).to(torch.uint8).view(x.shape)
    if grouping.bits == 4:
        half = x.shape[3] // 2
        codes = codes[..., :half] | (codes[..., half:] << 4)
    return Packed(grouping, codes, scales[:, :, :, 0, :, 0], minimums[:, :, :, 0, :, 0])


def unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The numbers again, ``[B, G, T, D]`` in ``dtype``, computed in float32."""
    codes, scales, minimums = packed.tensors
    if packed.grouping.bits == 4:
        half = codes.shape[3]
        numbers = torch.empty((*codes.shape[:3], 2 * half), dtype=torch.float32, device=codes.device)
        numbers[..., :half], numbers[..., half:] = codes & 15, codes >> 4
    else:
        numbers = codes.float()
    groups = _grouped(numbers, packed.grouping)
    torch.addcmul(minimums.float()[:, :, :, None, :, None], groups, scales.float()[:, :, :, None, :, None], out=groups)
    return numbers.to(dtype)


def _grouped(x: Tensor, grouping: Grouping) -> Tensor:
    """``[B, G, T, D]`` as ``[B, G, T/tokens, tokens, D/channels, channels]``."""
    batch, heads, length, width = x.shape
    tokens, channels = grouping.tokens, grouping.channels
    return x.reshape(batch, heads, length // tokens, tokens, width // channels, channels)


class PackedBuffer:
    """A quantized tensor that grows in whole blocks of tokens.

    Room grows by a sixteenth: one copy of each token is made some 17 times in all, which at 4 bits is little beside
    reading the whole at every step, and the spare room stays small.
    """

    def __init__(self, grouping: Grouping, block: int) -> None:
        self.grouping = grouping
        self.block = block
        self.length = 0
        self._kept: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Codes, scales and minimums with their room; empty while nothing was stored."""
        return self._kept

    def append(self, x: Tensor) -> None:
        """Quantize and store ``[B, G, T, D]``, ``T`` a multiple of the block."""
        packed = pack(x, self.grouping)
        end = self.length + x.shape[2]
        self.reserve(end, x)
        for kept, new, per in zip(self._kept, packed.tensors, self._tokens_per_row(), strict=True):
            kept[:, :, self.length // per : end // per] = new
        self.length = end

    def reserve(self, end: int, like: Tensor) -> None:
        """Make room for ``end`` positions of tensors like this, ``[B, G, any, D]``."""
        if self._kept and self._kept[0].shape[2] >= end:
            return
        room = end if not self._kept else end + -(-end // (16 * self.block)) * self.block
        batch, heads, _, width = like.shape
        widths = width * self.grouping.bits // 8, width // self.grouping.channels, width // self.grouping.channels
        grown = []
        for size, per, dtype in zip(widths, self._tokens_per_row(), _TYPES, strict=True):
            with torch.inference_mode(False):  # what is made in inference mode could not be written to outside
                grown.append(torch.empty((batch, heads, room // per, size), dtype=dtype, device=like.device))
        for old, larger, per in zip(self._kept, grown, self._tokens_per_row(), strict=False):
            larger[:, :, : self.length // per] = old[:, :, : self.length // per]
        self._kept = tuple(grown)

    def _tokens_per_row(self) -> tuple[int, int, int]:
        return 1, self.grouping.tokens, self.grouping.tokens

    def read(self, start: int, end: int) -> Packed:
        """Positions ``start`` to ``end``, multiples of the block, as views."""
        views = (
            kept[:, :, start // per : end // per] for kept, per in zip(self._kept, self._tokens_per_row(), strict=True)
        )
        return Packed(self.grouping, *views)

    def unpack_into(self, out: Tensor, piece: int) -> None:
        """Write all that is stored to the front of ``out`` ``[B, G, S, D]``, ``piece`` positions at a time."""
        for start in range(0, self.length, piece):
            end = min(start + piece, self.length)
            out[:, :, start:end] = unpack(self.read(start, end), out.dtype)

    def crop(self, length: int, rest: Tensor) -> None:
        """Keep the blocks before ``length``, and write what is cut off a block into ``rest`` ``[B, G, n, D]``."""
        if rest.shape[2]:
            cut = self.read(length, length + self.block)
            rest[:] = unpack(cut, rest.dtype)[:, :, : rest.shape[2]]
        self.length = length

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch."""
        self._kept = tuple(kept.index_select(0, rows.to(kept.device)) for kept in self._kept)
