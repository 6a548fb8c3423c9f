"""Attention of one new position per sequence over what a cache holds, read where it lies.

The query heads that share a key-value head are computed together, so that keys are read once and never repeated.
What is stored comes in segments that follow each other: a cache of few bits has its past in codes and its recent
positions as they came. Codes are widened a few positions at a time, in the first-level cache.

Shapes: ``B`` sequences, ``H`` query heads, ``G`` key-value heads, ``S`` positions, ``D`` head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.kernels.native import call, level_for, pointer, type_number
from quarterdeck.kernels.rows import FLOAT_TYPES

MOST_WIDTH = 512
"""Heads wider than this go to the reference."""


class Codes(NamedTuple):
    """Keys or values in 8 or 4 bits: ``x = code * scale + minimum`` in groups of positions and channels.

    The layout is that of :mod:`quarterdeck.cache.groups`.
    """

    codes: Tensor
    """uint8 ``[B, G, S, D]``; with 4 bits ``[B, G, S, D / 2]``: channel ``j`` low, channel ``j + D / 2`` high."""
    scales: Tensor
    """float16 ``[B, G, S / tokens, D / channels]``."""
    minimums: Tensor
    """As ``scales``."""
    bits: int
    tokens: int
    channels: int

    @property
    def length(self) -> int:
        """Positions."""
        return self.codes.shape[2]

    @property
    def width(self) -> int:
        """Channels of a head."""
        return self.codes.shape[3] * 8 // self.bits


Stored = Tensor | Codes
"""Keys or values of a segment: floating ``[B, G, S, D]``, or codes."""


def decode_reference(
    query: Tensor, segments: Sequence[tuple[Stored, Stored]], *, scale: float, allowed: Tensor | None = None
) -> Tensor:
    """What :func:`decode` computes."""
    key = torch.cat([_widened(key) for key, _ in segments], dim=2)
    value = torch.cat([_widened(value) for _, value in segments], dim=2)
    folded = query.float().view(query.shape[0], key.shape[1], -1, query.shape[3])  # [B, G, H/G, D]
    scores = folded @ key.transpose(2, 3) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None, None], -torch.inf)
    weights = scores.softmax(dim=-1)
    if allowed is not None:
        weights = weights.masked_fill(~allowed.any(dim=-1)[:, None, None, None], 0.0)
    return (weights @ value).view(query.shape).to(query.dtype)


def decode(
    query: Tensor,
    segments: Sequence[tuple[Stored, Stored]],
    *,
    scale: float,
    allowed: Tensor | None = None,
    level: str | None = None,
) -> Tensor:
    """Attention of queries ``[B, H, 1, D]`` over the keys and values of all segments, in order: ``[B, H, 1, D]``.

    Args:
        query: float32, bfloat16 or float16; the result has its type, sums are in float32.
        segments: pairs of keys and values; floating ones may have another type than the query.
        scale: what scores are multiplied by.
        allowed: bool ``[B, S]``, the positions of all segments that each sequence may see; all if ``None``. A
            sequence that may see nothing gets zeros.
        level: forces an instruction set of :data:`quarterdeck.kernels.native.LEVELS`, or ``"reference"``.

    Raises InputError where shapes or types do not fit together.
    """
    _check(query, segments, allowed)
    number = level_for(query, level)
    segments = [pair for pair in segments if _length(pair[0])]
    if number is None or query.shape[3] > MOST_WIDTH or not segments:
        return (
            decode_reference(query, segments, scale=scale, allowed=allowed)
            if segments
            else query.new_zeros(query.shape)
        )
    query = query.contiguous()
    output = torch.empty_like(query)
    mask = None if allowed is None else allowed.contiguous()
    batch, heads = _sequences_and_heads(segments[0][0])
    kept = [_segment_tensors(pair) for pair in segments]  # referred to until the call returns
    parts, start = (_Segment * len(segments))(), 0
    for part, (key, value) in zip(parts, kept, strict=True):
        part.key, part.value = _describe(key), _describe(value)
        part.start, part.length = start, _length(key)
        start += part.length
    attention = _Attention(
        query=pointer(query), out=pointer(output), allowed=pointer(mask), type=type_number(query), batch=batch,
        heads=heads, queries=query.shape[1] // heads, width=query.shape[3], positions=start, scale=scale,
    )  # fmt: skip
    call("quarterdeck_attend", number, ctypes.byref(attention), parts, len(parts))
    return output


class _Stored(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p), ("scales", c_void_p), ("minima", c_void_p), ("sequence", c_int64), ("head", c_int64),
        ("scale_sequence", c_int64), ("scale_head", c_int64), ("bits", c_int32), ("type", c_int32),
        ("tokens", c_int32), ("channels", c_int32),
    )  # fmt: skip


class _Attention(ctypes.Structure):
    _fields_ = (
        ("query", c_void_p), ("out", c_void_p), ("allowed", c_void_p), ("type", c_int32), ("batch", c_int64),
        ("heads", c_int64), ("queries", c_int64), ("width", c_int64), ("positions", c_int64), ("scale", c_float),
    )  # fmt: skip


class _Segment(ctypes.Structure):
    _fields_ = (("key", _Stored), ("value", _Stored), ("start", c_int64), ("length", c_int64))


def _describe(stored: Stored) -> _Stored:
    if isinstance(stored, Tensor):
        strides = stored.stride()
        return _Stored(data=pointer(stored), sequence=strides[0], head=strides[1], type=type_number(stored))
    strides, scale_strides = stored.codes.stride(), stored.scales.stride()
    return _Stored(
        data=pointer(stored.codes), scales=pointer(stored.scales), minima=pointer(stored.minimums),
        sequence=strides[0], head=strides[1], scale_sequence=scale_strides[0], scale_head=scale_strides[1],
        bits=stored.bits, tokens=stored.tokens, channels=stored.channels,
    )  # fmt: skip


def _segment_tensors(pair: tuple[Stored, Stored]) -> tuple[Stored, Stored]:
    return _in_rows(pair[0]), _in_rows(pair[1])


def _in_rows(stored: Stored) -> Stored:
    """The same with a head's positions following each other; caches hold them so, and nothing is copied."""
    if isinstance(stored, Tensor):
        return stored if _has_rows(stored) else stored.contiguous()
    together = stored.scales.stride() == stored.minimums.stride()
    if together and _has_rows(stored.codes) and _has_rows(stored.scales):
        return stored
    return stored._replace(
        codes=stored.codes.contiguous(), scales=stored.scales.contiguous(), minimums=stored.minimums.contiguous()
    )


def _has_rows(tensor: Tensor) -> bool:
    return tensor.stride(3) == 1 and tensor.stride(2) == tensor.shape[3]


def _length(stored: Stored) -> int:
    return stored.shape[2] if isinstance(stored, Tensor) else stored.length


def _sequences_and_heads(stored: Stored) -> tuple[int, int]:
    shape = stored.shape if isinstance(stored, Tensor) else stored.codes.shape
    return shape[0], shape[1]


def _widened(stored: Stored) -> Tensor:
    """``[B, G, S, D]`` in float32."""
    if isinstance(stored, Tensor):
        return stored.float()
    codes = stored.codes
    if stored.bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), dim=-1)
    scales, minimums = (
        part.float().repeat_interleave(stored.tokens, dim=2).repeat_interleave(stored.channels, dim=3)
        for part in (stored.scales, stored.minimums)
    )
    return codes.float() * scales + minimums


def _check(query: Tensor, segments: Sequence[tuple[Stored, Stored]], allowed: Tensor | None) -> None:
    if query.ndim != 4 or query.shape[2] != 1 or query.dtype not in FLOAT_TYPES:
        raise InputError(f"query is {query.dtype} {list(query.shape)}; it must be floating, [B, H, 1, D]")
    batch, heads, _, width = query.shape
    places = {part.device for pair in segments for stored in pair for part in _tensors(stored)}
    if places - {query.device} or (allowed is not None and allowed.device != query.device):
        there = ", ".join(sorted({str(place) for place in places}))
        raise InputError(f"query is on {query.device}, its cache or mask is not ({there}): move one to the other")
    for pair in segments:
        if _length(pair[0]) != _length(pair[1]):
            raise InputError(f"a segment has {_length(pair[0])} keys and {_length(pair[1])} values")
        for stored in pair:
            _check_stored(stored, batch, heads, width)
    if len({_sequences_and_heads(stored)[1] for pair in segments for stored in pair}) > 1:
        raise InputError("segments differ in their number of key-value heads")
    positions = sum(_length(key) for key, _ in segments)
    if allowed is not None and (allowed.dtype != torch.bool or tuple(allowed.shape) != (batch, positions)):
        raise InputError(f"allowed is {allowed.dtype} {list(allowed.shape)}; it must be bool [{batch}, {positions}]")


def _tensors(stored: Stored) -> tuple[Tensor, ...]:
    return (stored,) if isinstance(stored, Tensor) else (stored.codes, stored.scales, stored.minimums)


def _check_stored(stored: Stored, batch: int, heads: int, width: int) -> None:
    if not isinstance(stored, Tensor) and (stored.bits not in (4, 8) or stored.tokens < 1 or stored.channels < 1):
        raise InputError(
            f"codes of {stored.bits} bits in groups of {stored.tokens} x {stored.channels}: bits must be 4 or 8 and "
            "groups 1 x 1 or more"
        )
    shape = stored.shape if isinstance(stored, Tensor) else (*stored.codes.shape[:3], stored.width)
    if len(shape) != 4 or shape[0] != batch or not shape[1] or heads % shape[1] or shape[3] != width:
        raise InputError(f"keys or values {list(shape)} do not fit queries [{batch}, {heads}, 1, {width}]")
    if isinstance(stored, Tensor):
        if stored.dtype not in FLOAT_TYPES:
            raise InputError(f"keys or values are {stored.dtype}; they must be float32, bfloat16, float16 or Codes")
        return
    groups = (*shape[:2], shape[2] // stored.tokens, width // stored.channels)
    fits = tuple(stored.scales.shape) == groups == tuple(stored.minimums.shape) and stored.bits in (4, 8)
    if not fits or shape[2] % stored.tokens or width % stored.channels or stored.codes.dtype != torch.uint8:
        raise InputError(
            f"codes of {stored.bits} bits {list(shape)} in groups of {stored.tokens} x {stored.channels} do not fit "
            f"scales {list(stored.scales.shape)} and minimums {list(stored.minimums.shape)}"
        )
    if not stored.scales.dtype == stored.minimums.dtype == torch.float16:
        raise InputError(f"scales are {stored.scales.dtype} and minimums {stored.minimums.dtype}; both must be float16")
