"""What the products with packed weights share: rows of activations in 8 bits, and blocks of 16 rows of weights.

Blocks. Weights of ``N`` rows and ``K`` columns are stored as ``[ceil(N / 16), Q, 16, 4]``, ``Q = ceil(K / 64) * 16``:
16 rows side by side, 4 neighbouring columns innermost. 64 such bytes fill a vector register, whose 32-bit lanes each
add 4 products to one row's sum (AVX-512 VNNI); 16 times as many are a tile of AMX. What lies outside ``N`` and ``K``
is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from quarterdeck.errors import InputError

BLOCK_ROWS = 16
BLOCK_COLUMNS = 64
QUAD = 4

PART = 2**22
"""Weights that are unpacked at a time where the native library is absent: 16 MiB of float32."""

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)

LEAST = 2.0**-100
"""A row whose largest magnitude is below this is a row of zeros: 127 divided by it would overflow."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[M, K]`` to int8 values ``[M, K]`` in [-127, 127] and float32 scales ``[M]``, near values * scale.

    The largest magnitude of a row becomes 127; ties round to even. A row that holds an infinity or a NaN gets the
    scale NaN, and so makes every product with it NaN.
    """
    x = x.float()
    largest = x.abs().amax(dim=-1) if x.shape[-1] else x.new_zeros(x.shape[0])
    largest = torch.where(largest < LEAST, 0.0, largest)
    finite = largest.isfinite()
    # a number over a tensor would be its rounded reciprocal times the number
    inverse = torch.where(finite & (largest > 0), torch.full_like(largest, 127.0) / largest, 0.0)
    values = torch.where(finite[:, None], x * inverse[:, None], 0.0).round().to(torch.int8)
    return values, torch.where(finite, largest / 127.0, torch.nan)


def pack_blocks(values: Tensor) -> Tensor:
    """``[N, K]`` of bytes to ``[ceil(N / 16), ceil(K / 64) * 16, 16, 4]``; see the module's text."""
    rows, columns = values.shape
    padded = pad(values, (0, -columns % BLOCK_COLUMNS, 0, -rows % BLOCK_ROWS))
    blocks = padded.view(-1, BLOCK_ROWS, padded.shape[1] // QUAD, QUAD)  # [N/16, 16, Q, 4]
    return blocks.transpose(1, 2).contiguous()


def unpack_blocks(data: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`pack_blocks`."""
    blocks = data.transpose(1, 2)  # [N/16, 16, Q, 4]
    return blocks.reshape(blocks.shape[0] * BLOCK_ROWS, -1)[:rows, :columns].contiguous()


def pack_groups(numbers: Tensor, name: str, rows: int, columns: int, group: int) -> Tensor:
    """A number for each group of columns, ``[N, ceil(K / group)]``, to float16 ``[ceil(N / 16), groups, 16]``.

    Zero outside. InputError calls the numbers by their ``name`` where they do not fit a weight ``[rows, columns]``.
    """
    expected = (rows, -(-columns // group))
    if tuple(numbers.shape) != expected or numbers.dtype != torch.float16:
        raise InputError(
            f"{name} is {numbers.dtype} {list(numbers.shape)}; values [{rows}, {columns}] in groups of {group} "
            f"need float16 {list(expected)}"
        )
    groups = padded_columns(columns) // group
    padded = pad(numbers, (0, groups - expected[1], 0, -rows % BLOCK_ROWS))
    return padded.view(-1, BLOCK_ROWS, groups).transpose(1, 2).contiguous()


def unpack_groups(numbers: Tensor, rows: int, columns: int, group: int) -> Tensor:
    """The inverse of :func:`pack_groups`."""
    flat = numbers.transpose(1, 2).flatten(0, 1)
    return flat[:rows, : -(-columns // group)].contiguous()


def finished(output: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """What a product ends with: float32 ``[M, N]`` plus ``bias`` ``[N]``, in the type and leading sizes of ``x``."""
    output = output if bias is None else output + bias.float()
    return output.to(x.dtype).view(*x.shape[:-1], output.shape[-1])


def padded_columns(columns: int) -> int:
    """``columns`` rounded up to whole blocks."""
    return columns + -columns % BLOCK_COLUMNS


def row_parts(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """A packed weight cut into parts of at most :data:`PART` weights, or one block: slices of blocks and of rows."""
    step = max(1, PART // (BLOCK_ROWS * padded_columns(columns)))
    for first in range(0, -(-rows // BLOCK_ROWS), step):
        yield slice(first, first + step), slice(first * BLOCK_ROWS, min((first + step) * BLOCK_ROWS, rows))
