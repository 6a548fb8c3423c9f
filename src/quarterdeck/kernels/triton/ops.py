"""The products as an operator of PyTorch, which ``torch.compile`` and CUDA graphs take as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quarterdeck.kernels.triton.products import MOST_ROWS, Packed, product, unpacked


@torch.library.custom_op("quarterdeck::packed_product", mutates_args=())
def packed_product(
    x: Tensor, data: Tensor, scale: Tensor, minimum: Tensor | None, bias: Tensor | None, kind: str, rows: int
) -> Tensor:
    """``x`` ``[..., K]`` times a packed weight ``[rows, K]``: ``[..., rows]`` in the type of ``x``.

    The other arguments are those of :class:`~quarterdeck.kernels.triton.products.Packed`. Many rows of activations, and
    more than one in float32, are a product with the weight unpacked for the time of the call.
    """
    packed = Packed(data, scale, minimum, kind, rows, x.shape[-1])
    flat = x.reshape(-1, x.shape[-1])
    count = flat.shape[0]
    if count == 1 or (1 < count <= MOST_ROWS and x.dtype != torch.float32):
        return product(flat, packed, bias).view(*x.shape[:-1], rows)
    return functional.linear(x, unpacked(packed, x.dtype), None if bias is None else bias.to(x.dtype))


@packed_product.register_fake
def _(
    x: Tensor, data: Tensor, scale: Tensor, minimum: Tensor | None, bias: Tensor | None, kind: str, rows: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)
