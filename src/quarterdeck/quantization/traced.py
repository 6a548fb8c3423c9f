"""The products as operators that ``torch.compile`` leaves whole: it cannot look into native code, and need not.

Outside of compiled programs the kernels are called as they are, which costs less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quarterdeck.kernels import int4, int8, int8_groups
from quarterdeck.kernels.int4 import Int4Weight
from quarterdeck.kernels.int8 import Int8Weight
from quarterdeck.kernels.int8_groups import Int8GroupWeight


@torch.library.custom_op("quarterdeck::int8_product", mutates_args=())
def int8_product(x: Tensor, data: Tensor, scale: Tensor, row_sum: Tensor, columns: int, bias: Tensor | None) -> Tensor:
    """`quarterdeck.kernels.int8.linear`."""
    return int8.linear(x, Int8Weight(data, scale, row_sum, columns), bias)


@int8_product.register_fake
def _(x: Tensor, data: Tensor, scale: Tensor, row_sum: Tensor, columns: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], scale.shape[0])


@torch.library.custom_op("quarterdeck::int8_group_product", mutates_args=())
def int8_group_product(x: Tensor, data: Tensor, scale: Tensor, rows: int, columns: int, bias: Tensor | None) -> Tensor:
    """`quarterdeck.kernels.int8_groups.linear`."""
    return int8_groups.linear(x, Int8GroupWeight(data, scale, rows, columns), bias)


@int8_group_product.register_fake
def _(x: Tensor, data: Tensor, scale: Tensor, rows: int, columns: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


@torch.library.custom_op("quarterdeck::int4_product", mutates_args=())
def int4_product(
    x: Tensor, data: Tensor, scale: Tensor, minimum: Tensor | None, rows: int, columns: int, bias: Tensor | None
) -> Tensor:
    """`quarterdeck.kernels.int4.linear`."""
    return int4.linear(x, Int4Weight(data, scale, minimum, rows, columns), bias)


@int4_product.register_fake
def _(
    x: Tensor, data: Tensor, scale: Tensor, minimum: Tensor | None, rows: int, columns: int, bias: Tensor | None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)
