"""Weights in 8-bit floating point (e4m3: 4 bits of exponent, 3 of mantissa, to 448) with one scale per row.

Weight row ``n`` is ``values[n] * scale[n]``. Rounding is relative, where int8's is absolute: small weights of a row
keep three bits. Activations stay as they are, on every device; the CPU has no kernel for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quarterdeck.kernels.checks import check_ids, check_linear, check_matrix
from quarterdeck.kernels.rows import LEAST, pack_blocks, unpack_blocks
from quarterdeck.kernels.weight_only import weight_only_linear, weight_only_reference

LARGEST = 448.0
"""The largest number of the format."""


class Fp8Weight(NamedTuple):
    """A packed weight ``[N, K]``; ``columns`` is ``K`` without padding."""

    data: Tensor
    """uint8, the bits, ``[ceil(N / 16), ceil(K / 64) * 16, 16, 4]``, see :mod:`quarterdeck.kernels.rows`."""
    scale: Tensor
    """float32 ``[N]``."""
    columns: int

    @property
    def rows(self) -> int:
        """``N``."""
        return self.scale.shape[0]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a floating weight ``[N, K]`` to nearest: float8_e4m3fn values ``[N, K]`` and float32 scales ``[N]``."""
    check_matrix(weight, "weight", floating=True)
    largest = weight.float().abs().amax(dim=1)
    scale = torch.where(largest < LEAST, 1.0, largest / LARGEST)
    return (weight.float() / scale[:, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def pack(values: Tensor, scale: Tensor) -> Fp8Weight:
    """Pack float8_e4m3fn values ``[N, K]`` that are numbers, and their scales ``[N]``."""
    check_matrix(values.float(), "values", floating=True)
    return Fp8Weight(pack_blocks(values.view(torch.uint8)), scale.float().contiguous(), values.shape[1])


def unpack(packed: Fp8Weight) -> tuple[Tensor, Tensor]:
    """The values ``[N, K]`` and scales ``[N]`` that were packed."""
    return unpack_blocks(packed.data, packed.rows, packed.columns).view(torch.float8_e4m3fn), packed.scale


def dequantize(packed: Fp8Weight) -> Tensor:
    """The weight ``[N, K]`` in float32."""
    values, scale = unpack(packed)
    return values.float() * scale[:, None]


def linear_reference(x: Tensor, packed: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """What :func:`linear` computes."""
    return weight_only_reference(x, dequantize(packed), bias)


def linear(x: Tensor, packed: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """``x`` ``[..., K]`` times the weight, plus ``bias`` ``[N]``: ``[..., N]`` in ``x``'s type (float32, bf16, fp16).

    Raises InputError where shapes, types or devices do not fit together.
    """
    check_linear(x, packed.data, packed.rows, packed.columns, bias)
    parts = (packed.data, packed.scale, None)
    return weight_only_linear(x, parts, bias, kind="fp8", rows=packed.rows, dequantize=lambda: dequantize(packed))


def embedding(ids: Tensor, packed: Fp8Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows ``ids`` ``[...]`` of the weight, ``[..., K]`` in ``dtype``."""
    check_ids(ids, packed.rows)
    bits = packed.data[ids // 16, :, ids % 16].flatten(-2)[..., : packed.columns]
    return (bits.view(torch.float8_e4m3fn).float() * packed.scale[ids][..., None]).to(dtype)
