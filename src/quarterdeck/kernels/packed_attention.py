"""Causal attention over documents that follow each other in one stream of tokens, with gradients: for training.

Documents may share a prefix, another document of the stream, which is computed once: its keys and values are seen by
all documents on it, and get the sum of their gradients. On processors with AVX-512 both directions are native, block by
block and without a matrix of scores; bfloat16 uses tiles (AMX) where there are some, float32 sums otherwise.

Shapes: ``N`` tokens of the stream, ``M`` documents, ``H`` query heads, ``G`` key-value heads, ``D`` head width.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from quarterdeck.errors import InputError
from quarterdeck.kernels.native import LEVELS, call, levels, pointer, type_number

WIDTHS = (32, 64, 128)
"""Head widths that the native kernels know."""

_TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Documents in one stream of N tokens. int64 CPU tensor `documents` [M, 4]: begin, end, prefix_begin, prefix_end.

    Query i of a document [begin, end) sees keys prefix_begin..prefix_end-1 (all of them; empty if equal) and begin..i.
    A prefix is itself a document listed before (it sees only itself, causally). Every token of the stream is in exactly
    one document; ``rows`` and ``tokens`` raise InputError where that is not so.
    """

    documents: Tensor

    @cached_property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """The documents as numbers, checked."""
        table = self.documents
        if table.dtype != torch.int64 or table.device.type != "cpu" or table.dim() != 2 or table.shape[1] != 4:
            said = f"{table.dtype} {tuple(table.shape)} on {table.device}"
            raise InputError(f"documents must be int64 [M, 4] on the CPU, not {said}")
        rows = [(row[0], row[1], row[2], row[3]) for row in table.tolist()]
        alone: set[tuple[int, int]] = set()
        for begin, end, *prefix in rows:
            if prefix[0] == prefix[1]:
                alone.add((begin, end))
            elif (prefix[0], prefix[1]) not in alone:
                raise InputError(
                    f"the document of tokens {begin} to {end} has the prefix {prefix[0]} to {prefix[1]}, which is no "
                    f"document without a prefix listed before it; list that first"
                )
        return rows

    @cached_property
    def tokens(self) -> int:
        """N: the length of the stream."""
        end = 0
        for row in sorted(self.rows):
            if row[0] != end or row[1] <= row[0]:
                raise InputError(
                    f"documents must follow each other from 0 on: one ends at {end}, the next is {row[:2]}"
                )
            end = row[1]
        return end

    @cached_property
    def table(self) -> Tensor:
        """``documents`` as one piece of memory."""
        return self.documents.contiguous()


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float) -> Tensor:
    """Attention of queries ``[N, H, D]`` over keys and values ``[N, G, D]`` as ``layout`` allows: ``[N, H, D]``.

    Scores are products times ``scaling``; query head ``h`` uses key head ``h // (H // G)``. All three are on one device
    and have one type, which is the result's; any strides. Native for float32 and bfloat16 and the widths of
    :data:`WIDTHS` on the CPU; all else goes to :func:`packed_attention_reference`. Differentiable once; sums are in
    float32.

    Raises InputError where shapes, types, devices or the layout do not fit together.
    """
    _check(query, key, value, layout)
    level = native_level(query)
    if level is None or scaling <= 0 or not layout.tokens:
        return packed_attention_reference(query, key, value, layout, scaling)
    result: Tensor = _PackedAttention.apply(query, key, value, layout, scaling, level)  # type: ignore[no-untyped-call]
    return result


def packed_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float
) -> Tensor:
    """What :func:`packed_attention` computes, document by document in PyTorch."""
    _check(query, key, value, layout)
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor for tensor in (key, value))
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))  # [H, N, D]
    parts: list[tuple[int, Tensor]] = []
    with torch.autocast(query.device.type, enabled=False):
        for begin, end, prefix_begin, prefix_end in layout.rows:
            own, prefix = slice(begin, end), slice(prefix_begin, prefix_end)
            keys, values, mask = k[:, own], v[:, own], None
            if prefix_end > prefix_begin:
                keys, values = torch.cat((k[:, prefix], keys), dim=1), torch.cat((v[:, prefix], values), dim=1)
                everything = torch.ones(end - begin, keys.shape[1], dtype=torch.bool, device=query.device)
                mask = everything.tril(prefix_end - prefix_begin)
            # one sequence of H heads: PyTorch's fast kernels take four dimensions
            seen = scaled_dot_product_attention(
                q[None, :, own], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scaling
            )
            parts.append((begin, seen[0].transpose(0, 1)))
    parts.sort(key=lambda part: part[0])
    return torch.cat([part for _, part in parts]) if parts else torch.zeros_like(query)


def native_level(query: Tensor) -> int | None:
    """The number of the level that computes ``query``'s attention; ``None`` is the reference."""
    fits = query.device.type == "cpu" and query.dtype in _TYPES and query.shape[2] in WIDTHS
    if not fits or "avx512" not in levels():
        return None
    return LEVELS.index("amx" if "amx" in levels() else "avx512")


class _Rows(ctypes.Structure):
    """As ``PackedRows`` in packed.h."""

    _fields_ = (("data", c_void_p), ("token", c_int64), ("head", c_int64))


class _Attention(ctypes.Structure):
    """As ``PackedAttention`` in packed.h."""

    _fields_ = (
        *((name, _Rows) for name in ("query", "key", "value", "grad")),
        *((name, c_void_p) for name in ("out", "sums", "grad_query", "grad_key", "grad_value", "documents")),
        *((name, c_int64) for name in ("count", "tokens", "heads", "key_heads", "width")),
        ("scaling", c_float), ("type", c_int),
    )  # fmt: skip


class _PackedAttention(torch.autograd.Function):
    """The native kernels."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float, level: int
    ) -> Tensor:
        """The result; what the backward pass needs is kept in ``ctx``."""
        query, key, value = _whole_channels(query), _whole_channels(key), _whole_channels(value)
        out = torch.empty(query.shape, dtype=query.dtype)
        sums = torch.empty(query.shape[1], query.shape[0], dtype=torch.float32)
        attention = _describe(query, key, value, out, sums, layout, scaling)
        call("quarterdeck_packed_forward", level, ctypes.byref(attention))
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.layout, ctx.scaling, ctx.level = layout, scaling, level
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, out, sums = ctx.saved_tensors
        grad = _whole_channels(grad)
        grads = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (query, key, value)]
        attention = _describe(query, key, value, out, sums, ctx.layout, ctx.scaling)
        attention.grad = _rows(grad)
        attention.grad_query, attention.grad_key, attention.grad_value = (pointer(tensor) for tensor in grads)
        call("quarterdeck_packed_backward", ctx.level, ctypes.byref(attention))
        return (*grads, None, None, None)


def _describe(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, layout: PackedLayout, scaling: float
) -> _Attention:
    return _Attention(
        query=_rows(query), key=_rows(key), value=_rows(value), out=pointer(out), sums=pointer(sums),
        documents=pointer(layout.table), count=layout.table.shape[0], tokens=query.shape[0], heads=query.shape[1],
        key_heads=key.shape[1], width=query.shape[2], scaling=scaling, type=type_number(query),
    )  # fmt: skip


def _rows(tensor: Tensor) -> _Rows:
    return _Rows(pointer(tensor), tensor.stride(0), tensor.stride(1))


def _whole_channels(tensor: Tensor) -> Tensor:
    """``tensor`` with a head's channels one after the other."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _check(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.dim() != 3 or key.dim() != 3 or key.shape != value.shape:
        raise InputError(f"packed attention needs a query [N, H, D] and keys and values [N, G, D], not {shapes}")
    if (query.shape[0], query.shape[2]) != (key.shape[0], key.shape[2]) or query.shape[1] % key.shape[1]:
        raise InputError(f"tokens and widths must be the same, and key heads must divide query heads: {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise InputError(f"query, key and value must have one type, not {query.dtype}, {key.dtype}, {value.dtype}")
    if not query.device == key.device == value.device:
        places = f"{query.device}, {key.device}, {value.device}"
        raise InputError(f"query, key and value must be on one device, not {places}; move them with .to()")
    if layout.tokens != query.shape[0]:
        raise InputError(f"the layout has {layout.tokens} tokens, the query {query.shape[0]}")
