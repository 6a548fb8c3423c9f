"""Packed weights as 32-bit words, and how numbers come out of a word.

The layouts of :mod:`quarterdeck.kernels.rows` are read as words ``[ceil(N / 16), W, 16]``: word ``[b, w, r]`` holds
neighbouring columns of row ``16 b + r``, eight of 4 bits (``W = K / 8``) or four of 8 bits (``W = K / 4``). The words
of 16 rows lie one behind the other, so that a program which walks along ``K`` reads memory from end to end, 16 bytes
per thread at a time, and nothing needs to be packed again for a GPU.

A number becomes a float without the conversion unit, which is slow: integer bits are put below the exponent of 2**23
and the constant is subtracted, ``float(2**23 + u) - 2**23 = u`` exactly (as in Kim et al. 2022, "Who Says Elephants
Can't Run"). Where the bits stand some places higher, the number is so many powers of two larger, which :func:`factor`
takes back; that saves a shift for three numbers of four.
"""

from __future__ import annotations

import triton
import triton.language as tl

INT4 = tl.constexpr(0)
INT8 = tl.constexpr(1)
FP8 = tl.constexpr(2)
"""e4m3 without infinities: 4 bits of exponent with bias 7, 3 of mantissa."""


@triton.jit
def numbers(words: tl.tensor, j: tl.constexpr, kind: tl.constexpr, middle: tl.constexpr) -> tl.tensor:
    """Number ``j`` of each word in float32, ``value / factor(j, kind)``; exact.

    Args:
        words: int32, from :func:`prepared`.
        j: which of the columns of a word.
        kind: of the weight.
        middle: for 4 bits, what is subtracted from 0 to 15.
    """
    if kind == FP8:
        # sign, exponent and mantissa to the places that they have in a float32, whose exponent has another bias
        top = words if j == 3 else words << (24 - 8 * j)
        found = ((top >> 4) & -0x78100000).to(tl.float32, bitcast=True)
    elif kind == INT8:
        shift: tl.constexpr = 8 * (j % 2)
        low = words if j < 2 else words >> 16
        bits = (low & (255 << shift)) | 0x4B000000
        found = bits.to(tl.float32, bitcast=True) - (8388608.0 + 128 * (1 << shift))
    else:
        whole: tl.constexpr = 8 * j if j < 4 else 8 * j - 28
        place: tl.constexpr = whole if whole <= 16 else whole - 16
        low = words if whole <= 16 else words >> 16
        bits = (low & (15 << place)) | 0x4B000000
        found = bits.to(tl.float32, bitcast=True) - (8388608.0 + middle * (1 << place))
    return found


@triton.jit
def factor(j: tl.constexpr, kind: tl.constexpr) -> tl.tensor:
    """What :func:`numbers` has to be multiplied with; for 8-bit floats :func:`last_factor` is to follow."""
    if kind == FP8:
        return 2.0**100  # not 2**120 at once: an activation times it must not overflow
    if kind == INT8:
        return 2.0 ** -(8 * (j % 2))
    whole: tl.constexpr = 8 * j if j < 4 else 8 * j - 28
    return 2.0 ** -(whole if whole <= 16 else whole - 16)


@triton.jit
def last_factor(kind: tl.constexpr) -> tl.tensor:
    """The rest of the factor, for sums."""
    return 2.0**20 if kind == FP8 else 1.0


@triton.jit
def prepared(words: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """Words as :func:`numbers` takes them: signed bytes become unsigned ones, 128 larger."""
    return words ^ -0x7F7F7F80 if kind == INT8 else words
