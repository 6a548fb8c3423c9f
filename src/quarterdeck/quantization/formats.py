"""The packed formats as values of one kind: which tensors hold a weight ``[N, K]``, how they are made and used.

The layouts themselves are those of `quarterdeck.kernels`; a module holds the tensors as buffers under the names here,
and a checkpoint stores them under the same names, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from quarterdeck.kernels import int4, int8, int8_groups
from quarterdeck.kernels.int4 import Int4Weight
from quarterdeck.kernels.int8 import Int8Weight
from quarterdeck.kernels.int8_groups import Int8GroupWeight
from quarterdeck.kernels.rows import BLOCK_ROWS, QUAD, padded_columns
from quarterdeck.quantization.config import FORMS, QuantizationConfig
from quarterdeck.quantization.traced import int4_product, int8_group_product, int8_product

PackedWeight = Int8Weight | Int8GroupWeight | Int4Weight
PACKED, SCALE, ROW_SUM, MINIMUM = "weight_packed", "weight_scale", "weight_row_sum", "weight_minimum"
LEAVES = (PACKED, SCALE, ROW_SUM, MINIMUM)
"""All names under which a module may hold parts of a packed weight."""

_CHUNK = 2**20  # weights that are rounded at once; float32 copies of them are what rounding takes besides


class PackedFormat(Protocol):
    """One way of holding a weight ``[N, K]`` in fewer bits."""

    def tensors(self, rows: int, columns: int) -> Mapping[str, tuple[Sequence[int], torch.dtype]]:
        """Name, shape and type of each tensor that holds the weight."""
        ...

    def rounded(self, weight: Tensor) -> PackedWeight:
        """The weight rounded to nearest and packed."""
        ...

    def view(self, tensors: Mapping[str, Tensor], rows: int, columns: int) -> PackedWeight:
        """What the kernels take, over the same memory."""
        ...


class Int8Format:
    """8 bits for each weight, a float32 scale for each row."""

    def __repr__(self) -> str:
        return "int8"

    def tensors(self, rows: int, columns: int) -> Mapping[str, tuple[Sequence[int], torch.dtype]]:
        """See `PackedFormat`; the row sums follow from the values and save adding them at every start."""
        blocks = (-(-rows // BLOCK_ROWS), padded_columns(columns) // QUAD, BLOCK_ROWS, QUAD)
        return {PACKED: (blocks, torch.int8), SCALE: ((rows,), torch.float32), ROW_SUM: ((rows,), torch.int32)}

    def rounded(self, weight: Tensor) -> PackedWeight:
        """See `PackedFormat`."""
        return int8.pack(*int8.quantize(weight))

    def view(self, tensors: Mapping[str, Tensor], rows: int, columns: int) -> PackedWeight:
        """See `PackedFormat`."""
        return Int8Weight(tensors[PACKED], tensors[SCALE], tensors[ROW_SUM], columns)


class Int8GroupFormat:
    """8 bits for each weight, a 16-bit scale for each group of 32 columns."""

    def __repr__(self) -> str:
        return f"int8, groups of {int8_groups.GROUP}"

    def tensors(self, rows: int, columns: int) -> Mapping[str, tuple[Sequence[int], torch.dtype]]:
        """See `PackedFormat`."""
        blocks, padded = -(-rows // BLOCK_ROWS), padded_columns(columns)
        groups = ((blocks, padded // int8_groups.GROUP, BLOCK_ROWS), torch.float16)
        return {PACKED: ((blocks, padded // QUAD, BLOCK_ROWS, QUAD), torch.int8), SCALE: groups}

    def rounded(self, weight: Tensor) -> PackedWeight:
        """See `PackedFormat`."""
        return int8_groups.pack(*int8_groups.quantize(weight))

    def view(self, tensors: Mapping[str, Tensor], rows: int, columns: int) -> PackedWeight:
        """See `PackedFormat`."""
        return Int8GroupWeight(tensors[PACKED], tensors[SCALE], rows, columns)


class Int4Format:
    """4 bits for each weight, a 16-bit scale for each group of columns, and a minimum if not symmetric.

    Args:
        symmetric: without minima.
        group: of columns; None is what the kernels make where nothing else is asked for.
    """

    def __init__(self, *, symmetric: bool, group: int | None = None) -> None:
        self.symmetric = symmetric
        self.group = group or (int4.SYMMETRIC_GROUP if symmetric else int4.ASYMMETRIC_GROUP)

    def __repr__(self) -> str:
        return f"int4, {'' if self.symmetric else 'a'}symmetric, groups of {self.group}"

    def tensors(self, rows: int, columns: int) -> Mapping[str, tuple[Sequence[int], torch.dtype]]:
        """See `PackedFormat`."""
        blocks, padded = -(-rows // BLOCK_ROWS), padded_columns(columns)
        groups = ((blocks, padded // self.group, BLOCK_ROWS), torch.float16)
        data = ((blocks, padded // (2 * QUAD), BLOCK_ROWS, QUAD), torch.uint8)
        return {PACKED: data, SCALE: groups} | ({} if self.symmetric else {MINIMUM: groups})

    def rounded(self, weight: Tensor) -> PackedWeight:
        """See `PackedFormat`."""
        values = int4.quantize(weight, symmetric=self.symmetric, group=self.group)
        return int4.pack(*values, group=self.group)

    def view(self, tensors: Mapping[str, Tensor], rows: int, columns: int) -> PackedWeight:
        """See `PackedFormat`."""
        return Int4Weight(tensors[PACKED], tensors[SCALE], tensors.get(MINIMUM), rows, columns)


def format_of(config: QuantizationConfig, name: str = "") -> PackedFormat:
    """The format that a configuration asks for in the module ``name``; ``""`` is none that it names."""
    return format_named(config.form_of(name))


def format_named(form: str) -> PackedFormat:
    """The format of that name in `quarterdeck.quantization.config.FORMS`."""
    kind, symmetric, group, _ = FORMS[form]
    if kind == "int4":
        return Int4Format(symmetric=symmetric, group=group)
    return Int8Format() if group is None else Int8GroupFormat()


def tensors_of(packed: PackedWeight) -> dict[str, Tensor]:
    """The tensors of a packed weight under the names of a checkpoint."""
    if isinstance(packed, Int8Weight):
        return {PACKED: packed.data, SCALE: packed.scale, ROW_SUM: packed.row_sum}
    found = {PACKED: packed.data, SCALE: packed.scale}
    minimum = packed.minimum if isinstance(packed, Int4Weight) else None
    return found if minimum is None else found | {MINIMUM: minimum}


def round_weight(form: PackedFormat, weight: Tensor) -> dict[str, Tensor]:
    """The tensors of ``weight`` ``[N, K]`` rounded to nearest, some rows at a time, on the weight's device."""
    step = max(_CHUNK // max(weight.shape[1], 1) // BLOCK_ROWS, 1) * BLOCK_ROWS
    return packed_in_slabs(form, weight, step, form.rounded)


def packed_in_slabs(
    form: PackedFormat, weight: Tensor, step: int, pack: Callable[[Tensor], PackedWeight]
) -> dict[str, Tensor]:
    """The tensors of a weight whose rows are packed some at a time, on the weight's device.

    Args:
        form: the format that ``pack`` makes.
        weight: ``[N, K]``.
        step: rows at a time, a multiple of `BLOCK_ROWS`.
        pack: is given rows ``[step, K]``, the last time fewer.
    """
    rows, columns = weight.shape
    if step >= rows:
        return tensors_of(pack(weight))
    assert step % BLOCK_ROWS == 0, f"{step} rows are no whole blocks of {BLOCK_ROWS}"
    sizes = form.tensors(rows, columns)
    made = {name: torch.empty(shape, dtype=dtype, device=weight.device) for name, (shape, dtype) in sizes.items()}
    for start in range(0, rows, step):
        for name, part in tensors_of(pack(weight[start : start + step])).items():
            # the first dimension counts rows, or blocks of rows; a step is whole blocks
            first = start if len(made[name]) == rows else start // BLOCK_ROWS
            made[name][first : first + len(part)] = part
    return made


def product(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """``x`` ``[..., K]`` times the weight, plus ``bias`` ``[N]``: ``[..., N]`` in the type of ``x``."""
    traced = torch.compiler.is_compiling()
    if isinstance(packed, Int8Weight):
        return int8_product(x, *packed, bias) if traced else int8.linear(x, packed, bias)
    if isinstance(packed, Int8GroupWeight):
        return int8_group_product(x, *packed, bias) if traced else int8_groups.linear(x, packed, bias)
    return int4_product(x, *packed, bias) if traced else int4.linear(x, packed, bias)


def chosen_rows(ids: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Rows ``ids`` ``[...]`` of the weight, ``[..., K]`` in ``dtype``."""
    if isinstance(packed, Int8Weight):
        return int8.embedding(ids, packed, dtype)
    if isinstance(packed, Int8GroupWeight):
        return int8_groups.embedding(ids, packed, dtype)
    return int4.embedding(ids, packed, dtype)


def full_weight(packed: PackedWeight) -> Tensor:
    """The weight ``[N, K]`` in float32, as the products see it."""
    if isinstance(packed, Int8Weight):
        return int8.dequantize(packed)
    return int8_groups.dequantize(packed) if isinstance(packed, Int8GroupWeight) else int4.dequantize(packed)


class _Product(torch.autograd.Function):
    """The product with the gradients of its input and bias; the packed weight itself is not trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, packed: PackedWeight) -> Tensor:
        ctx.packed = packed
        return product(x, packed, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad = grads[0]  # [..., N]
        needs_x, needs_bias = ctx.needs_input_grad[:2]
        grad_x = grad @ full_weight(ctx.packed).to(grad.dtype) if needs_x else None
        return grad_x, grad.reshape(-1, grad.shape[-1]).sum(0) if needs_bias else None, None


def trainable_product(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """As `product`, for inputs or biases that need a gradient.

    The gradient is that of the product with the weight as it is held; that activations are rounded to 8 bits is left
    out of it (a "straight-through" estimate).
    """
    result: Tensor = _Product.apply(x, bias, packed)  # type: ignore[no-untyped-call]  # torch has no annotation here
    return result
