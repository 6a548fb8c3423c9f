"""GGUF's blocks of 256 numbers: sub-blocks of 16 or 32 with small scales, themselves times one or two half floats.

    Q2_K  scales[16] (4 bits scale, 4 bits minimum), 2-bit values[64], d, dmin      w = d * scale * q - dmin * minimum
    Q3_K  third bits[32], 2-bit values[64], 6-bit scales[12], d                     w = d * (scale - 32) * (q - 4)
    Q4_K  d, dmin, 6-bit scales and minima[12], nibbles[128]                        w = d * scale * q - dmin * minimum
    Q5_K  d, dmin, 6-bit scales and minima[12], fifth bits[32], nibbles[128]        the same
    Q6_K  nibbles[128], 2 high bits[64], int8 scales[16], d                         w = d * scale * (q - 32)

Numbers in brackets are bytes. Values are spread so that 32 (in Q6_K 64) neighbouring bytes have the same bits of
neighbouring values.

Shapes: blocks ``[B, bytes]`` uint8; results float32 ``[B, 256]``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def read_q2_k(blocks: Tensor) -> Tensor:
    """Blocks of 84 bytes."""
    packed, values = blocks[:, :16], _spread(blocks[:, 16:80], 2)  # [B, 16], [B, 256]
    scale = half(blocks[:, 80:82]) * (packed & 15).float()
    minimum = half(blocks[:, 82:84]) * (packed >> 4).float()
    return _scaled(values.float(), scale) - _wide(minimum)


def read_q3_k(blocks: Tensor) -> Tensor:
    """Blocks of 110 bytes. A third bit that is not set takes 4 away."""
    high = bits(blocks[:, :32].unsqueeze(1), 1, 8, along=1).flatten(1)  # [B, 256]
    low = _spread(blocks[:, 32:96], 2)
    values = low.float() - 4.0 * (1 - high).float()
    packed = blocks[:, 96:108]
    small = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), dim=1)  # [B, 16]
    large = bits(packed[:, 8:].unsqueeze(1), 2, 4, along=1).flatten(1)  # [B, 16]
    scale = half(blocks[:, 108:110]) * ((small | large << 4).float() - 32.0)
    return _scaled(values, scale)


def read_q4_k(blocks: Tensor) -> Tensor:
    """Blocks of 144 bytes."""
    scale, minimum = _scales_and_minima(blocks)
    return _scaled(_spread(blocks[:, 16:], 4).float(), scale) - _wide(minimum)


def read_q5_k(blocks: Tensor) -> Tensor:
    """Blocks of 176 bytes."""
    scale, minimum = _scales_and_minima(blocks)
    high = bits(blocks[:, 16:48].unsqueeze(1), 1, 8, along=1).flatten(1)  # [B, 256]
    values = _spread(blocks[:, 48:], 4) | high << 4
    return _scaled(values.float(), scale) - _wide(minimum)


def read_q6_k(blocks: Tensor) -> Tensor:
    """Blocks of 210 bytes."""
    low = bits(blocks[:, :128].reshape(-1, 2, 1, 64), 4, 2, along=2).flatten(1)  # [B, 256]
    high = _spread(blocks[:, 128:192], 2)
    scale = half(blocks[:, 208:210]) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return _scaled((low | high << 4).float() - 32.0, scale)


def half(numbers: Tensor) -> Tensor:
    """Two bytes of each block as a float32 ``[B, 1]``."""
    return numbers.contiguous().view(torch.float16).float()


def bits(data: Tensor, width: int, count: int, along: int = -1) -> Tensor:
    """``count`` fields of ``width`` bits of each byte, the lowest first, spread along a dimension of size 1."""
    shape = [1] * data.ndim
    shape[along] = count
    shifts = torch.arange(0, width * count, width, dtype=torch.uint8).view(shape)
    return data >> shifts & (1 << width) - 1


def nibbles(data: Tensor) -> Tensor:
    """Bytes ``[B, n]``: values ``[B, 2 n]``, all low halves, then all high ones."""
    return torch.cat((data & 15, data >> 4), dim=1)


def _spread(data: Tensor, width: int) -> Tensor:
    """Bytes in runs of 32, the lowest fields of a run before its next ones: values ``[B, 256]``."""
    runs = data.reshape(len(data), -1, 1, 32)
    return bits(runs, width, 8 // width, along=2).flatten(1)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K, ``[B, 8]`` each, times their half floats.

    The 12 bytes: 4 with the first scales in 6 bits, 4 with the first minima, 4 with the low 4 bits of the last scales
    and minima, whose high 2 bits are the high ones of the first 8 bytes.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((first & 63, third & 15 | first >> 2 & 48), dim=1)
    minimum = torch.cat((second & 63, third >> 4 | second >> 2 & 48), dim=1)
    return half(blocks[:, :2]) * scale.float(), half(blocks[:, 2:4]) * minimum.float()


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    """Values ``[B, 256]`` times the scales ``[B, n]`` of their sub-blocks."""
    return values * _wide(scale)


def _wide(numbers: Tensor) -> Tensor:
    """``[B, n]`` to ``[B, 256]``."""
    return numbers.repeat_interleave(256 // numbers.shape[1], dim=1)
