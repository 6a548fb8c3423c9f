"""Checks of arguments that the kernels share: a wrong shape must not become a wild pointer."""

from __future__ import annotations

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.kernels.rows import FLOAT_TYPES


def check_matrix(
    matrix: Tensor,
    name: str,
    *,
    floating: bool = False,
    dtype: torch.dtype | None = None,
    limits: tuple[int, int] | None = None,
) -> None:
    """InputError unless ``matrix`` is two-dimensional, not empty, of the type, and within the limits."""
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{name} must be a matrix [rows, columns] that is not empty, not {list(matrix.shape)}")
    if dtype not in (None, matrix.dtype) or (floating and not matrix.dtype.is_floating_point):
        raise InputError(f"{name} is {matrix.dtype}; it must be {'a floating type' if floating else dtype}")
    if floating and not bool(matrix.isfinite().all()):
        raise InputError(f"{name} holds infinities or NaNs, which no scale can hold; is the checkpoint intact?")
    if limits is None:
        return
    low, high = int(matrix.min()), int(matrix.max())
    if low < limits[0] or high > limits[1]:
        raise InputError(f"{name} reach from {low} to {high}; they must be from {limits[0]} to {limits[1]}")


def check_linear(x: Tensor, data: Tensor, rows: int, columns: int, bias: Tensor | None) -> None:
    """InputError unless ``x`` ``[..., columns]`` and ``bias`` ``[rows]`` fit the packed weight."""
    if x.dtype not in FLOAT_TYPES:
        raise InputError(f"activations are {x.dtype}; products with packed weights take float32, bfloat16 and float16")
    if x.ndim == 0 or x.shape[-1] != columns:
        raise InputError(f"activations {list(x.shape)} do not fit a weight of {columns} columns")
    if x.device != data.device:
        raise InputError(f"activations are on {x.device}, the weight on {data.device}: move one to the other")
    if bias is not None and (bias.shape != (rows,) or bias.device != data.device):
        raise InputError(f"bias is {list(bias.shape)} on {bias.device}; it must be [{rows}] on {data.device}")


def check_part(part: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """InputError unless a tensor of a packed weight is what native code takes it for: it reads by the sizes alone."""
    if part.shape != shape or part.dtype != dtype or part.device != device:
        raise InputError(
            f"the packed weight's {name} is {part.dtype} {list(part.shape)} on {part.device}; its rows and columns "
            f"need {dtype} {list(shape)} on {device}: pack the weight again"
        )
    if not part.is_contiguous():
        raise InputError(f"the packed weight's {name} has strides {part.stride()}: call its contiguous() first")


def check_ids(ids: Tensor, rows: int) -> None:
    """InputError unless ``ids`` are int64 or int32 and, where looking costs nothing, rows that there are.

    Compiled programs do not look: a number that the host reads would break them in two.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"ids are {ids.dtype}; rows of a weight of {rows} rows are chosen by int64 or int32")
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling():
        return  # another device would have to be waited for
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= rows:
        raise InputError(f"ids reach from {low} to {high}; the weight has rows 0 to {rows - 1}")
