"""Weights in 4 bits with a 16-bit scale per group of columns, times activations that are rounded to 8 bits.

Symmetric, in groups of 32: weight = (value - 8) * scale, 4.5 bits per weight. Asymmetric, in groups of 64 or 32:
weight = value * scale + minimum, 4.5 or 5 bits. Values are 0 to 15; scales and minima are float16.

Nibbles stand in the order of blocks of :mod:`quarterdeck.kernels.rows`, two neighbouring quads of columns sharing
bytes: ``data[b, p, r, c]`` is ``value[b, 2p, r, c] + 16 * value[b, 2p + 1, r, c]``.
"""

from __future__ import annotations

from collections.abc import Callable
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

SYMMETRIC_GROUP = 32
ASYMMETRIC_GROUP = 64
"""What is made where nothing else is asked for; asymmetric weights may have groups of 32 as well."""


class Int4Weight(NamedTuple):
    """A packed weight ``[N, K]``. The tensors are what a checkpoint stores; the numbers are ``N`` and ``K``."""

    data: Tensor
    """uint8 ``[ceil(N / 16), ceil(K / 64) * 8, 16, 4]``, two values in each."""
    scale: Tensor
    """float16 ``[ceil(N / 16), ceil(K / 64) * 64 / group, 16]``."""
    minimum: Tensor | None
    """As ``scale``; ``None`` where the layout is symmetric."""
    rows: int
    columns: int

    @property
    def group(self) -> int:
        """Columns that share a scale, as the number of scales tells."""
        small = self.minimum is None or self.scale.shape[1] * SYMMETRIC_GROUP == padded_columns(self.columns)
        return SYMMETRIC_GROUP if small else ASYMMETRIC_GROUP


def quantize(weight: Tensor, *, symmetric: bool, group: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round a floating weight ``[N, K]`` to nearest: what :func:`pack` takes.

    Symmetric: the value of largest magnitude in a group becomes -8, so that all 16 values are used. Asymmetric: the
    smallest value becomes 0 and the largest 15. Values are chosen for the scales as rounded to float16.

    float16 bounds what can be held. Above: InputError where a scale or minimum would pass 65504, that is symmetric
    weights of 524k, asymmetric ones of -65504 or groups that span 983k. Below: steps under 2**-14, weights near 5e-4,
    lose precision; those under 2**-25 become zero.
    """
    check_matrix(weight, "weight", floating=True)
    group = _group(group, symmetric)
    rows, columns = weight.shape
    groups = pad(weight.float(), (0, -columns % group), mode="replicate").view(rows, -1, group)
    if symmetric:
        extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
        scale, minimum = (extreme / -8.0).half(), None
        offset = -8.0 * scale.float()
    else:
        minimum = groups.amin(dim=-1).half()
        scale = ((groups.amax(dim=-1) - minimum.float()) / 15.0).half()
        offset = minimum.float()
    _check_finite(scale, minimum, lambda: f"the largest weight is {float(weight.detach().abs().max()):.4g}")
    steps = (groups - offset[..., None]) / torch.where(scale == 0, 1.0, scale.float())[..., None]
    values = steps.round().clamp(0, 15).to(torch.uint8).view(rows, -1)[:, :columns]
    return values.contiguous(), scale, minimum


def pack(values: Tensor, scale: Tensor, minimum: Tensor | None, *, group: int | None = None) -> Int4Weight:
    """Pack uint8 values ``[N, K]`` in [0, 15], float16 scales ``[N, ceil(K / group)]`` and, if asymmetric, minima.

    The group is 32 where ``minimum`` is ``None``, and otherwise 64 unless 32 is given. InputError where parts do not
    fit together or scales or minima are not finite.
    """
    check_matrix(values, "values", dtype=torch.uint8, limits=(0, 15))
    rows, columns = values.shape
    group = _group(group, minimum is None)
    blocks = pack_blocks(values)
    data = blocks[:, 0::2] | blocks[:, 1::2] << 4
    packed_scale = pack_groups(scale, "scale", rows, columns, group)
    packed_minimum = None if minimum is None else pack_groups(minimum, "minimum", rows, columns, group)
    _check_finite(packed_scale, packed_minimum, lambda: "they came so")
    return Int4Weight(data, packed_scale, packed_minimum, rows, columns)


def unpack(packed: Int4Weight) -> tuple[Tensor, Tensor, Tensor | None]:
    """What was packed: values, scales, minima."""
    nibbles = torch.stack((packed.data & 15, packed.data >> 4), dim=2)  # [N/16, Q/2, 2, 16, 4]
    values = unpack_blocks(nibbles.flatten(1, 2), packed.rows, packed.columns)
    sizes = packed.rows, packed.columns, packed.group
    minimum = None if packed.minimum is None else unpack_groups(packed.minimum, *sizes)
    return values, unpack_groups(packed.scale, *sizes), minimum


def dequantize(packed: Int4Weight) -> Tensor:
    """The weight ``[N, K]`` in float32."""
    values, scale, minimum = unpack(packed)
    return _dequantize(values, scale, minimum, packed.group)


def linear_reference(x: Tensor, packed: Int4Weight, bias: Tensor | None = None) -> Tensor:
    """What :func:`linear` computes."""
    values, scale = quantize_rows(x.reshape(-1, packed.columns))
    return finished((values.float() @ dequantize(packed).T) * scale[:, None], x, bias)


def linear_in_parts(x: Tensor, packed: Int4Weight, bias: Tensor | None = None) -> Tensor:
    """:func:`linear_reference` in little memory, but for the order of its sums: for where there is no library."""
    values, scale = quantize_rows(x.reshape(-1, packed.columns))
    floats = values.float()
    output = floats.new_empty(floats.shape[0], packed.rows)
    for blocks, rows in row_parts(packed.rows, packed.columns):
        minimum = None if packed.minimum is None else packed.minimum[blocks]
        count = rows.stop - rows.start
        part = Int4Weight(packed.data[blocks], packed.scale[blocks], minimum, count, packed.columns)
        output[:, rows] = floats @ dequantize(part).T
    return finished(output * scale[:, None], x, bias)


def linear(x: Tensor, packed: Int4Weight, bias: Tensor | None = None, *, level: str | None = None) -> Tensor:
    """``x`` ``[..., K]`` times the weight, plus ``bias`` ``[N]``: ``[..., N]`` in ``x``'s type (float32, bf16, fp16).

    On other devices than the CPU activations are not rounded to 8 bits (:mod:`quarterdeck.kernels.weight_only`). A row
    of ``x`` with an infinity or a NaN gives a row of NaN. ``level`` forces an instruction set of
    :data:`quarterdeck.kernels.native.LEVELS`, or ``"reference"``.

    Raises InputError where shapes, types or devices do not fit together.
    """
    check_linear(x, packed.data, packed.rows, packed.columns, bias)
    _check_parts(packed)
    if x.device.type != "cpu" and level is None:
        parts = (packed.data, packed.scale, packed.minimum)
        return weight_only_linear(x, parts, bias, kind="int4", rows=packed.rows, dequantize=lambda: dequantize(packed))
    number = level_for(x, level)
    if number is None:
        return (linear_in_parts if level is None else linear_reference)(x, packed, bias)
    tensors = (packed.data, packed.scale, packed.minimum)
    return packed_product("quarterdeck_group_linear", number, x, packed.rows, tensors, bias, 4, packed.group)


def embedding(ids: Tensor, packed: Int4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows ``ids`` ``[...]`` of the weight, ``[..., K]`` in ``dtype``."""
    check_ids(ids, packed.rows)
    block, row = ids // BLOCK_ROWS, ids % BLOCK_ROWS
    pairs = packed.data[block, :, row]  # [..., Q/2, 4]
    values = torch.stack((pairs & 15, pairs >> 4), dim=-2).flatten(-3)  # [..., K padded]
    minimum = None if packed.minimum is None else packed.minimum[block, :, row]
    rows = _dequantize(values, packed.scale[block, :, row], minimum, packed.group)
    return rows[..., : packed.columns].to(dtype)


def _group(asked: int | None, symmetric: bool) -> int:
    """The group that is asked for, or the usual one; InputError where there is none of that size."""
    sizes = (SYMMETRIC_GROUP,) if symmetric else (ASYMMETRIC_GROUP, SYMMETRIC_GROUP)
    if asked not in (None, *sizes):
        kind = "symmetric" if symmetric else "asymmetric"
        raise InputError(f"group is {asked}; {kind} 4-bit weights have groups of {' or '.join(map(str, sizes))}")
    return asked or sizes[0]


def _dequantize(values: Tensor, scale: Tensor, minimum: Tensor | None, group: int) -> Tensor:
    """``[..., K]`` with ``[..., ceil(K / group)]`` to float32 ``[..., K]``."""
    columns = values.shape[-1]
    scale = scale.float().repeat_interleave(group, dim=-1)[..., :columns]
    if minimum is None:
        return (values.float() - 8.0) * scale
    return values.float() * scale + minimum.float().repeat_interleave(group, dim=-1)[..., :columns]


def _check_finite(scale: Tensor, minimum: Tensor | None, reason: Callable[[], str]) -> None:
    """InputError where float16 does not hold a scale or a minimum; ``reason`` is asked for only then."""
    for name, part in (("scales", scale), ("minima", minimum)):
        if part is not None and not bool(part.isfinite().all()):
            raise InputError(
                f"4-bit {name} hold infinities or NaNs, {reason()}; float16 holds up to 65504 "
                "(weights of 8 times that where symmetric): use int8, or name the layer in modules_to_not_convert"
            )


def _check_parts(packed: Int4Weight) -> None:
    blocks, columns, device = -(-packed.rows // BLOCK_ROWS), padded_columns(packed.columns), packed.data.device
    check_part(packed.data, "data", (blocks, columns // (2 * QUAD), BLOCK_ROWS, QUAD), torch.uint8, device)
    groups = (blocks, columns // packed.group, BLOCK_ROWS)
    check_part(packed.scale, "scale", groups, torch.float16, device)
    if packed.minimum is not None:
        check_part(packed.minimum, "minimum", groups, torch.float16, device)
