"""Products of few rows with weights as they are: float32, bfloat16 and float16.

With one row (a step of decoding) every weight is used once, and the speed of memory is all there is; PyTorch comes
near it in float32 only. With more rows than :data:`MOST_ROWS`, PyTorch's product is as good or better and is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quarterdeck.errors import InputError
from quarterdeck.kernels.derivatives import is_transformed, wants_gradient
from quarterdeck.kernels.native import level_for, packed_product
from quarterdeck.kernels.rows import FLOAT_TYPES

MOST_ROWS = {torch.float32: 8, torch.bfloat16: 3, torch.float16: 8}
"""More rows of activations than this go to PyTorch."""

LEAST_WEIGHTS = 2**18
"""Smaller weights go to PyTorch: they are in a cache, and calling takes longer than multiplying."""


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What :func:`linear` computes: sums in float32, rounded once."""
    output = x.float() @ weight.float().T
    return (output if bias is None else output + bias.float()).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, level: str | None = None) -> Tensor:
    """``x`` ``[..., K]`` times ``weight`` ``[N, K]``, plus ``bias`` ``[N]``: ``[..., N]`` in ``x``'s type.

    Sums are in float32 whatever the type. ``level`` forces an instruction set of
    :data:`quarterdeck.kernels.native.LEVELS`, at any number of rows, or ``"reference"``. Without it, PyTorch computes
    where derivatives are wanted, where rows are many or weights few, on other devices and for other types.

    Raises InputError where shapes or types do not fit together.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1] or x.dtype != weight.dtype:
        raise InputError(
            f"activations {x.dtype} {list(x.shape)} do not fit a weight {weight.dtype} {list(weight.shape)}: "
            "both must have the same type and the same last dimension"
        )
    if x.device != weight.device or (bias is not None and bias.device != weight.device):
        raise InputError(f"activations and bias must be on the weight's device, {weight.device}: move one to the other")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias is {list(bias.shape)}; it must be [{weight.shape[0]}]")
    if level is None and not _is_ours(x, weight, bias):
        return functional.linear(x, weight, bias)
    number = level_for(x, level)
    if number is None or not weight.is_contiguous() or 0 in weight.shape or x.dtype not in FLOAT_TYPES:
        return linear_reference(x, weight, bias)
    return packed_product("quarterdeck_dense_linear", number, x, weight.shape[0], (weight,), bias)


def _is_ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the native product is the faster one, and no derivative is wanted of it."""
    if x.device.type != "cpu" or x.dtype not in FLOAT_TYPES or not weight.is_contiguous():
        return False
    if wants_gradient(x, weight, bias) or is_transformed():
        return False
    few = 0 < x.numel() <= MOST_ROWS[x.dtype] * x.shape[-1]
    return few and weight.numel() >= LEAST_WEIGHTS and level_for(x, None) is not None
