"""Weights in 8 bits with a 16-bit scale per 32 columns, times activations that are rounded to 8 bits.

weight = value * scale, 8.5 bits each. Beside :mod:`quarterdeck.kernels.int8`, whose rows have one scale, a large weight
makes its group coarse and not its row; products take longer where they wait for arithmetic and not for memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from quarterdeck.errors import InputError
from quarterdeck.kernels.checks import check_ids, check_linear, check_matrix, check_part
from quarterdeck.kernels.native import level_for, packed_product
from quarterdeck.kernels.rows import (
    BLOCK_ROWS,
    QUAD,
    finished,
    pack_blocks,
    pack_groups,
    padded_columns,
    quantize_rows,
    row_parts,
    unpack_blocks,
    unpack_groups,
)
from quarterdeck.kernels.weight_only import weight_only_linear

GROUP = 32
"""Columns that share a scale."""


class Int8GroupWeight(NamedTuple):
    """A packed weight ``[N, K]``. The tensors are what a checkpoint stores; the numbers are ``N`` and ``K``."""

    data: Tensor
    """int8 ``[ceil(N / 16), ceil(K / 64) * 16, 16, 4]``, see :mod:`quarterdeck.kernels.rows`."""
    scale: Tensor
    """float16 ``[ceil(N / 16), ceil(K / 64) * 2, 16]``."""
    rows: int
    columns: int


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a floating weight ``[N, K]`` to nearest: int8 values ``[N, K]`` and float16 scales ``[N, ceil(K / 32)]``.

    The largest magnitude of a group becomes 127; values are chosen for the scales as rounded to float16. InputError
    where a scale would pass 65504, that is weights of 8.3 million; below 2**-14 (weights near 8e-3) scales lose
    precision, below 2**-25 they become zero.
    """
    check_matrix(weight, "weight", floating=True)
    rows, columns = weight.shape
    groups = pad(weight.float(), (0, -columns % GROUP)).view(rows, -1, GROUP)
    scale = (groups.abs().amax(dim=-1) / 127.0).half()
    _check_finite(scale)
    values = (groups / torch.where(scale == 0, 1.0, scale.float())[..., None]).round().clamp(-127, 127)
    return values.to(torch.int8).view(rows, -1)[:, :columns].contiguous(), scale


def pack(values: Tensor, scale: Tensor) -> Int8GroupWeight:
    """Pack int8 values ``[N, K]`` and their float16 scales ``[N, ceil(K / 32)]``.

    InputError where parts do not fit together or scales are not finite.
    """
    check_matrix(values, "values", dtype=torch.int8)
    rows, columns = values.shape
    packed_scale = pack_groups(scale, "scale", rows, columns, GROUP)
    _check_finite(packed_scale)
    return Int8GroupWeight(pack_blocks(values), packed_scale, rows, columns)


def unpack(packed: Int8GroupWeight) -> tuple[Tensor, Tensor]:
    """What was packed: values and scales."""
    scale = unpack_groups(packed.scale, packed.rows, packed.columns, GROUP)
    return unpack_blocks(packed.data, packed.rows, packed.columns), scale


def dequantize(packed: Int8GroupWeight) -> Tensor:
    """The weight ``[N, K]`` in float32."""
    return _dequantize(*unpack(packed))


def linear_reference(x: Tensor, packed: Int8GroupWeight, bias: Tensor | None = None) -> Tensor:
    """What :func:`linear` computes."""
    values, scale = quantize_rows(x.reshape(-1, packed.columns))
    return finished((values.float() @ dequantize(packed).T) * scale[:, None], x, bias)


def linear_in_parts(x: Tensor, packed: Int8GroupWeight, bias: Tensor | None = None) -> Tensor:
    """:func:`linear_reference` in little memory, but for the order of its sums: for where there is no library."""
    values, scale = quantize_rows(x.reshape(-1, packed.columns))
    floats = values.float()
    output = floats.new_empty(floats.shape[0], packed.rows)
    for blocks, rows in row_parts(packed.rows, packed.columns):
        part = Int8GroupWeight(packed.data[blocks], packed.scale[blocks], rows.stop - rows.start, packed.columns)
        output[:, rows] = floats @ dequantize(part).T
    return finished(output * scale[:, None], x, bias)


def linear(x: Tensor, packed: Int8GroupWeight, bias: Tensor | None = None, *, level: str | None = None) -> Tensor:
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
    tensors = (packed.data, packed.scale, None)
    return packed_product("quarterdeck_group_linear", number, x, packed.rows, tensors, bias, 8, GROUP)


def embedding(ids: Tensor, packed: Int8GroupWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows ``ids`` ``[...]`` of the weight, ``[..., K]`` in ``dtype``."""
    check_ids(ids, packed.rows)
    block, row = ids // BLOCK_ROWS, ids % BLOCK_ROWS
    values = packed.data[block, :, row].flatten(-2)  # [..., K padded]
    return _dequantize(values, packed.scale[block, :, row])[..., : packed.columns].to(dtype)


def _dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """``[..., K]`` with ``[..., ceil(K / 32)]`` to float32 ``[..., K]``."""
    return values.float() * scale.float().repeat_interleave(GROUP, dim=-1)[..., : values.shape[-1]]


def _check_finite(scale: Tensor) -> None:
    """InputError where float16 does not hold a scale."""
    if not bool(scale.isfinite().all()):
        raise InputError(
            "8-bit scales of groups hold infinities or NaNs; float16 holds up to 65504 (weights of 127 times that): "
            "use int8 with a scale per row, or name the layer in modules_to_not_convert"
        )


def _check_parts(packed: Int8GroupWeight) -> None:
    blocks, columns, device = -(-packed.rows // BLOCK_ROWS), padded_columns(packed.columns), packed.data.device
    check_part(packed.data, "data", (blocks, columns // QUAD, BLOCK_ROWS, QUAD), torch.int8, device)
    check_part(packed.scale, "scale", (blocks, columns // GROUP, BLOCK_ROWS), torch.float16, device)
