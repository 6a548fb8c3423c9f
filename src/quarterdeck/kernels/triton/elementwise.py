"""What stands between the matrix products of a Cohere layer, each as one kernel.

At one token per row these functions move almost nothing, and their time is that of being started: PyTorch starts some
twenty kernels per layer for them, these are four. Every function gives what PyTorch's own would, with the same
intermediate roundings; the references below spell it out, and the tests hold both against the model's functions.

They have no gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from quarterdeck.kernels.triton import is_interpreted
from quarterdeck.kernels.triton.numerics import rounded

_BLOCK = 1024


@triton.jit
def _layer_norm(
    x: tl.tensor,
    weight: tl.tensor,
    output: tl.tensor,
    width: tl.tensor,
    groups: tl.tensor,
    eps: tl.tensor,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """One row; row ``i`` has the weight's row ``i % groups``."""
    row, column = tl.program_id(0), tl.arange(0, block)
    inside = column < width
    start = row.to(tl.int64) * width
    value = tl.load(x + start + column, inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, axis=0) / width, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    scale = tl.load(weight + row % groups * width + column, inside, other=0.0).to(tl.float32)
    normed = centred * (1.0 / tl.sqrt(variance + eps)) * scale
    tl.store(output + start + column, rounded(normed, output.dtype.element_ty, interpreted), inside)


def layer_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """What :func:`layer_norm` computes."""
    normed = functional.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight`` in float32 over the last dimension, rounded once.

    Args:
        x: ``[..., D]``, or ``[..., heads, D]``.
        weight: ``[D]``, or ``[heads, D]`` for each head.
        eps: added to the variance.
    """
    x = x.contiguous()
    output, width = torch.empty_like(x), x.shape[-1]
    block = triton.next_power_of_2(width)
    options = {"num_warps": min(max(block // 512, 1), 16), "enable_fp_fusion": True}
    sizes = (width, weight.numel() // width, eps)
    _layer_norm[(x.numel() // width,)](x, weight, output, *sizes, block=block, interpreted=is_interpreted(), **options)
    return output


@triton.jit
def _silu_multiply(
    gate: tl.tensor,
    up: tl.tensor,
    output: tl.tensor,
    size: tl.tensor,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    dtype = output.dtype.element_ty
    opened = tl.load(gate + at, at < size, other=0.0).to(tl.float32)
    opened = rounded(opened / (1.0 + tl.exp(-opened)), dtype, interpreted).to(tl.float32)
    raised = tl.load(up + at, at < size, other=0.0).to(tl.float32)
    tl.store(output + at, rounded(opened * raised, dtype, interpreted), at < size)


def silu_multiply_reference(gate: Tensor, up: Tensor) -> Tensor:
    """What :func:`silu_multiply` computes."""
    return functional.silu(gate) * up


def silu_multiply(gate: Tensor, up: Tensor) -> Tensor:
    """``gate / (1 + exp(-gate)) * up``, elements of two tensors of one shape and type."""
    gate, up = gate.contiguous(), up.contiguous()
    output, size = torch.empty_like(gate), gate.numel()
    constants = {"block": _BLOCK, "interpreted": is_interpreted(), "enable_fp_fusion": False}
    _silu_multiply[(-(-size // _BLOCK),)](gate, up, output, size, **constants)
    return output


@triton.jit
def _add_parallel(
    x: tl.tensor,
    attended: tl.tensor,
    fed: tl.tensor,
    output: tl.tensor,
    size: tl.tensor,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    dtype = output.dtype.element_ty
    total = tl.load(x + at, at < size, other=0.0).to(tl.float32)
    total += tl.load(attended + at, at < size, other=0.0).to(tl.float32)
    total = rounded(total, dtype, interpreted).to(tl.float32)
    total += tl.load(fed + at, at < size, other=0.0).to(tl.float32)
    tl.store(output + at, rounded(total, dtype, interpreted), at < size)


def add_parallel_reference(x: Tensor, attended: Tensor, fed: Tensor) -> Tensor:
    """What :func:`add_parallel` computes."""
    return x + attended + fed


def add_parallel(x: Tensor, attended: Tensor, fed: Tensor) -> Tensor:
    """``x + attended + fed``, from left to right, elements of three tensors of one shape and type."""
    x, attended, fed = x.contiguous(), attended.contiguous(), fed.contiguous()
    output, size = torch.empty_like(x), x.numel()
    constants = {"block": _BLOCK, "interpreted": is_interpreted(), "enable_fp_fusion": False}
    _add_parallel[(-(-size // _BLOCK),)](x, attended, fed, output, size, **constants)
    return output


@triton.jit
def _rotate(
    query: tl.tensor,
    key: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query_output: tl.tensor,
    key_output: tl.tensor,
    heads: tl.tensor,
    groups: tl.tensor,
    length: tl.tensor,
    rows: tl.tensor,
    pairs: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """Program ``(i, j)``: position ``i`` of ``B * T``, heads from ``some * j`` on, queries first and then keys."""
    position, head = tl.program_id(0), tl.program_id(1) * some + tl.arange(0, some)
    table = position if rows > 1 else position % length
    pair = tl.arange(0, block)
    cosine = tl.load(cos + table * pairs + pair, pair < pairs, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sin + table * pairs + pair, pair < pairs, other=0.0).to(tl.float32)[None, :]
    column = tl.arange(0, 2 * block)
    width = (column < 2 * pairs)[None, :]
    is_query = (head < heads)[:, None] & width
    is_key = (head >= heads)[:, None] & (head < heads + groups)[:, None] & width
    at_query = (position.to(tl.int64) * heads + head)[:, None] * (2 * pairs) + column[None, :]
    at_key = (position.to(tl.int64) * groups + head - heads)[:, None] * (2 * pairs) + column[None, :]
    value = tl.load(query + at_query, is_query, other=0.0).to(tl.float32)
    value += tl.load(key + at_key, is_key, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(value, [some, block, 2]))
    turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
    turned = rounded(tl.reshape(turned, [some, 2 * block]), query_output.dtype.element_ty, interpreted)
    tl.store(query_output + at_query, turned, is_query)
    tl.store(key_output + at_key, turned, is_key)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What :func:`rotate` makes of queries, and of keys: ``[B, T, heads, D]``."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    cos, sin = cos[:, :, None].float(), sin[:, :, None].float()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each channel pair (2i, 2i + 1) by its angle, in float32, rounded once.

    Args:
        query: ``[B, T, H, D]``.
        key: ``[B, T, G, D]``.
        cos, sin: ``[B or 1, T, D / 2]``.
    """
    query, key, cos, sin = query.contiguous(), key.contiguous(), cos.contiguous(), sin.contiguous()
    batch, length, heads, width = query.shape
    groups, pairs, some = key.shape[2], width // 2, 8
    outputs = torch.empty_like(query), torch.empty_like(key)
    grid = (batch * length, -(-(heads + groups) // some))
    sizes = (heads, groups, length, cos.shape[0])
    block = triton.next_power_of_2(pairs)
    constants = {"pairs": pairs, "block": block, "some": some, "interpreted": is_interpreted()}
    _rotate[grid](query, key, cos, sin, *outputs, *sizes, **constants, enable_fp_fusion=False)
    return outputs
