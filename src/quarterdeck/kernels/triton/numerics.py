"""Rounding and matrix products, also where Triton's interpreter has them otherwise.

The interpreter holds bfloat16 as bits in integers: it cuts float32 off instead of rounding, and multiplies matrices of
bits. With ``interpreted``, which is known when a kernel is compiled, the same is computed in float32, so that kernels
can be held against PyTorch to the last bit on a CPU. Compiled for a GPU nothing of it is left.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x: tl.tensor, dtype: tl.constexpr, interpreted: tl.constexpr) -> tl.tensor:
    """Float32 to ``dtype``, to nearest, ties to even."""
    if interpreted and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, sums: tl.tensor, interpreted: tl.constexpr) -> tl.tensor:
    """``sums + a @ b`` in float32, of two matrices of one 16-bit type."""
    if interpreted:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(a, b, sums)
