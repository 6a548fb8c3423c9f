"""The block formats of GGUF files: from bytes to numbers, and for the plain ones back.

A row of numbers is cut into blocks of 32 (``Q4_0`` and its like) or 256 (``Q2_K`` and its like); each block has
scales in half precision and its values in few bits. Sources: the structures and reference functions of ggml
(``ggml-common.h``, ``ggml-quants.c``).

Shapes: raw data ``[R, bytes]`` of uint8, numbers ``[R, K]``, blocks ``[B, bytes of one]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.gguf.container import BlockType
from quarterdeck.weights import gguf_superblocks as superblocks
from quarterdeck.weights.gguf_superblocks import bits, half, nibbles

_PLAIN: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def plain_dtype(kind: BlockType) -> torch.dtype | None:
    """The type of PyTorch that has the same bits; None for blocks."""
    return _PLAIN.get(kind.name)


def dequantize(raw: Tensor, kind: BlockType) -> Tensor:
    """Raw rows uint8 ``[R, bytes]`` as float32 ``[R, K]``."""
    plain = plain_dtype(kind)
    if plain is not None:
        return raw.view(plain).float()
    blocks = raw.reshape(-1, kind.nbytes)
    return _READ[kind.name](blocks).view(raw.shape[0], -1)


def quantize(rows: Tensor, kind: BlockType) -> Tensor:
    """Numbers ``[R, K]`` rounded to nearest as ggml's reference does: uint8 ``[R, bytes]``.

    Raises:
        InputError: a type that is only read, numbers that are not finite, or so large that a block's scale or minimum
            passes float16's largest, 65504. Scales under 2**-14 lose precision, those under 2**-25 become zero.
    """
    plain = plain_dtype(kind)
    if plain is not None:
        return rows.to(plain).contiguous().view(torch.uint8)
    if kind.name not in _WRITE:
        raise InputError(f"the GGUF type {kind.name} is read, but not written; there are {', '.join(WRITABLE)}")
    if not bool(rows.isfinite().all()):
        raise InputError("weights hold infinities or NaNs, which no scale can hold; is the checkpoint intact?")
    return _WRITE[kind.name](rows.float().reshape(-1, kind.block)).view(rows.shape[0], -1)


def split_q4_0(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Raw rows of ``Q4_0``: the values uint8 ``[R, K]`` in 0..15, and scales float16 ``[R, K / 32]``.

    Each weight is ``(value - 8) * scale``: the symmetric layout of `quarterdeck.kernels.int4`.
    """
    blocks = raw.reshape(-1, 18)
    scale = blocks[:, :2].contiguous().view(torch.float16)
    return nibbles(blocks[:, 2:]).view(raw.shape[0], -1), scale.view(raw.shape[0], -1)


def split_q4_1(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Raw rows of ``Q4_1``: the values uint8 ``[R, K]`` in 0..15, and float16 scales and minima ``[R, K / 32]``.

    Each weight is ``value * scale + minimum``: the asymmetric layout of `quarterdeck.kernels.int4` in groups of 32.
    """
    blocks = raw.reshape(-1, 20)
    scale, minimum = (blocks[:, at : at + 2].contiguous().view(torch.float16) for at in (0, 2))
    rows = raw.shape[0]
    return nibbles(blocks[:, 4:]).view(rows, -1), scale.view(rows, -1), minimum.view(rows, -1)


def split_q8_0(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Raw rows of ``Q8_0``: the values int8 ``[R, K]`` and scales float16 ``[R, K / 32]``.

    Each weight is ``value * scale``: the layout of `quarterdeck.kernels.int8_groups`.
    """
    blocks = raw.reshape(-1, 34)
    scale = blocks[:, :2].contiguous().view(torch.float16)
    return blocks[:, 2:].contiguous().view(torch.int8).view(raw.shape[0], -1), scale.view(raw.shape[0], -1)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_q4_0(blocks: Tensor) -> Tensor:
    return (nibbles(blocks[:, 2:]).float() - 8.0) * half(blocks[:, :2])


def _read_q4_1(blocks: Tensor) -> Tensor:
    return nibbles(blocks[:, 4:]).float() * half(blocks[:, :2]) + half(blocks[:, 2:4])


def _read_q5_0(blocks: Tensor) -> Tensor:
    return (_five(blocks[:, 2:6], blocks[:, 6:]).float() - 16.0) * half(blocks[:, :2])


def _read_q5_1(blocks: Tensor) -> Tensor:
    return _five(blocks[:, 4:8], blocks[:, 8:]).float() * half(blocks[:, :2]) + half(blocks[:, 2:4])


def _read_q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * half(blocks[:, :2])


def _five(high: Tensor, low: Tensor) -> Tensor:
    """4 bytes of fifth bits, the first value's lowest, and 16 bytes of nibbles: values ``[B, 32]``."""
    return nibbles(low) | bits(high.unsqueeze(-1), 1, 8).flatten(1) << 4


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_q4_0(blocks: Tensor) -> Tensor:
    scale, values = _around_zero(blocks, 8)
    return torch.cat((_half_bytes(scale), _join(values)), dim=1)


def _write_q4_1(blocks: Tensor) -> Tensor:
    scale, least, values = _above_least(blocks, 15)
    return torch.cat((_half_bytes(scale), _half_bytes(least), _join(values)), dim=1)


def _write_q5_0(blocks: Tensor) -> Tensor:
    scale, values = _around_zero(blocks, 16)
    return torch.cat((_half_bytes(scale), _fifth(values), _join(values & 15)), dim=1)


def _write_q5_1(blocks: Tensor) -> Tensor:
    scale, least, values = _above_least(blocks, 31)
    return torch.cat((_half_bytes(scale), _half_bytes(least), _fifth(values), _join(values & 15)), dim=1)


def _write_q8_0(blocks: Tensor) -> Tensor:
    largest = blocks.abs().amax(dim=1, keepdim=True)
    scale = largest / torch.full_like(largest, 127.0)
    scaled = blocks * _inverse(scale)
    whole = scaled.abs().floor()
    away = whole + (2 * (scaled.abs() - whole)).floor()  # halves go away from zero
    values = (scaled.sign() * away).to(torch.int8)
    return torch.cat((_half_bytes(scale), values.view(torch.uint8)), dim=1)


def _around_zero(blocks: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    """The number of largest magnitude becomes the value 0, zero becomes ``middle``."""
    extreme = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = extreme / -middle
    values = (blocks * _inverse(scale) + (middle + 0.5)).trunc().clamp(0, 2 * middle - 1)
    return scale, values.to(torch.uint8)


def _above_least(blocks: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The least number becomes the value 0, the largest ``most``."""
    least = blocks.amin(dim=1, keepdim=True)
    span = blocks.amax(dim=1, keepdim=True) - least
    scale = span / torch.full_like(span, float(most))
    values = ((blocks - least) * _inverse(scale) + 0.5).trunc().clamp(0, most)
    return scale, least, values.to(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, scale.reciprocal())


def _half_bytes(numbers: Tensor) -> Tensor:
    rounded = numbers.half()
    if not bool(rounded.isfinite().all()):
        raise InputError(
            f"a block's scale or minimum would be {float(numbers.abs().max()):.4g}, and float16 holds up to 65504: "
            "choose bf16 or f32"
        )
    return rounded.view(torch.uint8)


def _join(values: Tensor) -> Tensor:
    """Values ``[B, 32]`` of 4 bits to bytes ``[B, 16]``: the first half low, the second high."""
    return values[:, :16] | values[:, 16:] << 4


def _fifth(values: Tensor) -> Tensor:
    """The fifth bits of ``[B, 32]``: bytes ``[B, 4]``."""
    weights = 1 << torch.arange(8, dtype=torch.uint8)
    high = (values >> 4).view(-1, 4, 8) * weights
    return high.sum(dim=-1, dtype=torch.uint8)


_READ: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _read_q4_0,
    "Q4_1": _read_q4_1,
    "Q5_0": _read_q5_0,
    "Q5_1": _read_q5_1,
    "Q8_0": _read_q8_0,
    "Q2_K": superblocks.read_q2_k,
    "Q3_K": superblocks.read_q3_k,
    "Q4_K": superblocks.read_q4_k,
    "Q5_K": superblocks.read_q5_k,
    "Q6_K": superblocks.read_q6_k,
}
_WRITE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _write_q4_0,
    "Q4_1": _write_q4_1,
    "Q5_0": _write_q5_0,
    "Q5_1": _write_q5_1,
    "Q8_0": _write_q8_0,
}
WRITABLE = (*_PLAIN, *_WRITE)
"""Names of the types that are written."""
