"""Weights in 8 bits with one scale per row, times activations that are rounded to 8 bits as they come.

Weight row ``n`` is ``values[n] * scale[n]``. Activations are quantized per row (token) by
:func:`~quarterdeck.kernels.rows.quantize_rows`; products are summed in integers, so that every way of computing them
gives the same sums, and only then multiplied by both scales.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quarterdeck.kernels.checks import check_ids, check_linear, check_matrix, check_part
from quarterdeck.kernels.native import level_for, packed_product
from quarterdeck.kernels.rows import (
    BLOCK_ROWS,
    QUAD,
    finished,
    pack_blocks,
    padded_columns,
    quantize_rows,
    row_parts,
    unpack_blocks,
)
from quarterdeck.kernels.weight_only import weight_only_linear

EXACT_COLUMNS = 1024
"""1024 * 127 * 127 is less than 2**24."""


class Int8Weight(NamedTuple):
    """A packed weight ``[N, K]``. The tensors are what a checkpoint stores; ``columns`` is ``K`` without padding."""

    data: Tensor
    """int8 ``[ceil(N / 16), ceil(K / 64) * 16, 16, 4]``, see :mod:`quarterdeck.kernels.rows`."""
    scale: Tensor
    """float32 ``[N]``."""
    row_sum: Tensor
    """int32 ``[N]``, the sum of each row's values: instructions that want unsigned activations need it."""
    columns: int

    @property
    def rows(self) -> int:
        """``N``."""
        return self.scale.shape[0]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a floating weight ``[N, K]`` to nearest: int8 values ``[N, K]`` and float32 scales ``[N]``."""
    check_matrix(weight, "weight", floating=True)
    return quantize_rows(weight)


def pack(values: Tensor, scale: Tensor) -> Int8Weight:
    """Pack int8 values ``[N, K]`` in [-127, 127] and their float32 scales ``[N]``."""
    check_matrix(values, "values", dtype=torch.int8, limits=(-127, 127))
    sums = values.sum(dim=1, dtype=torch.int32)
    return Int8Weight(pack_blocks(values), scale.float().contiguous(), sums, values.shape[1])


def unpack(packed: Int8Weight) -> tuple[Tensor, Tensor]:
    """The values ``[N, K]`` and scales ``[N]`` that were packed."""
    return unpack_blocks(packed.data, packed.rows, packed.columns), packed.scale


def dequantize(packed: Int8Weight) -> Tensor:
    """The weight ``[N, K]`` in float32."""
    values, scale = unpack(packed)
    return values.float() * scale[:, None]


def linear_reference(x: Tensor, packed: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """What :func:`linear` computes; float64 holds the integer sums exactly."""
    values, scale = quantize_rows(x.reshape(-1, packed.columns))
    weight, weight_scale = unpack(packed)
    sums = (values.double() @ weight.double().T).float()
    return finished(sums * weight_scale * scale[:, None], x, bias)


def _pieces(matrix: Tensor) -> list[Tensor]:
    """Columns, :data:`EXACT_COLUMNS` at a time."""
    return [matrix[:, start : start + EXACT_COLUMNS] for start in range(0, matrix.shape[1], EXACT_COLUMNS)]


def linear_in_parts(x: Tensor, packed: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """Exactly :func:`linear_reference` in little memory, by products in float32: for where there is no library.

    Sums of :data:`EXACT_COLUMNS` products stay below 2**24, up to which float32 holds every integer.
    """
    values, scale = quantize_rows(x.reshape(-1, packed.columns))
    pieces = _pieces(values.float())
    output = x.new_empty(values.shape[0], packed.rows, dtype=torch.float32)
    for blocks, rows in row_parts(packed.rows, packed.columns):
        weight = unpack_blocks(packed.data[blocks], rows.stop - rows.start, packed.columns).float()
        sums = x.new_zeros(values.shape[0], len(weight), dtype=torch.float64)
        for piece, part in zip(pieces, _pieces(weight), strict=True):
            sums += piece @ part.T
        output[:, rows] = sums.float() * packed.scale[rows]
    return finished(output * scale[:, None], x, bias)


def linear(x: Tensor, packed: Int8Weight, bias: Tensor | None = None, *, level: str | None = None) -> Tensor:
    """``x`` ``[..., K]`` times the weight, plus ``bias`` ``[N]``: ``[..., N]`` in ``x``'s type (float32, bf16, fp16).

    On other devices than the CPU activations are not rounded to 8 bits (:mod:`quarterdeck.kernels.weight_only`). A row
    of ``x`` with an infinity or a NaN gives a row of NaN. ``level`` forces an instruction set of
    :data:`quarterdeck.kernels.native.LEVELS`, or ``"reference"``.

    Raises InputError where shapes, types or devices do not fit together.
    """
    check_linear(x, packed.data, packed.rows, packed.columns, bias)
    _check_parts(packed)
    if x.device.type != "cpu" and level is None:
        parts = (packed.data, packed.scale, None)
        return weight_only_linear(x, parts, bias, kind="int8", rows=packed.rows, dequantize=lambda: dequantize(packed))
    number = level_for(x, level)
    if number is None:
        return (linear_in_parts if level is None else linear_reference)(x, packed, bias)
    tensors = (packed.data, packed.scale, packed.row_sum)
    return packed_product("quarterdeck_int8_linear", number, x, packed.rows, tensors, bias)


def embedding(ids: Tensor, packed: Int8Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows ``ids`` ``[...]`` of the weight, ``[..., K]`` in ``dtype``."""
    check_ids(ids, packed.rows)
    blocks = packed.data[ids // 16, :, ids % 16]  # [..., Q, 4]
    values = blocks.flatten(-2)[..., : packed.columns].float()
    return (values * packed.scale[ids][..., None]).to(dtype)


def _check_parts(packed: Int8Weight) -> None:
    rows, device = packed.rows, packed.data.device
    blocks = (-(-rows // BLOCK_ROWS), padded_columns(packed.columns) // QUAD, BLOCK_ROWS, QUAD)
    check_part(packed.data, "data", blocks, torch.int8, device)
    check_part(packed.scale, "scale", (rows,), torch.float32, device)
    check_part(packed.row_sum, "row_sum", (rows,), torch.int32, device)
