"""Products with packed weights on devices other than the CPU: activations stay as they are.

A GPU multiplies 16-bit numbers faster than memory brings 4-bit ones, so that rounding activations, as the CPU's kernels
do, would win nothing there. With Triton, CUDA reads the packed weights in place (:mod:`quarterdeck.kernels.triton`);
without it, and on other devices, the weight is unpacked by PyTorch for the time of the call.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from quarterdeck.kernels import triton


def weight_only_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` ``[..., K]`` times the float32 ``weight`` ``[N, K]`` rounded to ``x``'s type, plus ``bias`` ``[N]``."""
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def weight_only_linear(
    x: Tensor,
    parts: tuple[Tensor, Tensor, Tensor | None],
    bias: Tensor | None,
    *,
    kind: str,
    rows: int,
    dequantize: Callable[[], Tensor],
) -> Tensor:
    """What :func:`weight_only_reference` computes, sums in float32.

    Args:
        x: ``[..., K]`` in float32, bfloat16 or float16.
        parts: the packed bytes, their scales and minima.
        bias: ``[N]``.
        kind: ``"int4"``, ``"int8"`` or ``"fp8"``.
        rows: ``N``.
        dequantize: makes the whole weight in float32.
    """
    if not triton.usable(x):
        return weight_only_reference(x, dequantize(), bias)
    from quarterdeck.kernels.triton.products import Packed, any_product  # Triton is there

    return any_product(x, Packed(*parts, kind, rows, x.shape[-1]), bias)
