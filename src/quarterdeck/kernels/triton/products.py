"""Products of a few rows of activations with packed weights; activations stay as they are.

One row: every number is multiplied in float32, on its way from memory, and sums are kept per column of words until the
end. Two to 64 rows: numbers become the type of the activations and go to the matrix units, with the weight on the left,
so that 8 rows of activations are enough for a tile. Where rows of the weight are too few to keep a GPU busy, ``K`` is
split among programs, and a second kernel adds the parts up in a fixed order: results do not vary from run to run.

Shapes: ``M`` rows of activations, ``N`` rows and ``K`` columns of the weight, ``W`` words of a row, ``C`` columns in a
word, ``P`` parts of ``K``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from quarterdeck.kernels.triton import is_interpreted
from quarterdeck.kernels.triton.numerics import dot, rounded
from quarterdeck.kernels.triton.words import FP8, INT4, INT8, factor, last_factor, numbers, prepared

MOST_ROWS = 64
"""More rows of activations than this are a matrix product for cuBLAS, with the weight unpacked."""

_PROGRAMS = 4  # for each multiprocessor; fewer do not ask for enough memory at a time
_FINISH = 1024


@triton.jit
def _one_row(
    x: tl.tensor,
    words: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    w: tl.tensor,
    part: tl.tensor,
    kind: tl.constexpr,
    middle: tl.constexpr,
    per_word: tl.constexpr,
    group: tl.constexpr,
    is_last: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """``output[p, N]``: program ``(i, p)`` has ``rows`` rows of the weight and ``part`` words of each."""
    first, split = tl.program_id(0) * rows, tl.program_id(1)
    row = first + tl.arange(0, rows)
    lane = (row // 16).to(tl.int64) * w * 16 + row % 16
    is_row = row < (n + 15) // 16 * 16
    sums = tl.zeros([block, rows], tl.float32)
    end = tl.minimum((split + 1) * part, w)
    for start in range(split * part, end, block):
        at = start + tl.arange(0, block)
        inside = (at < end)[:, None] & is_row[None, :]
        read = tl.load(words + lane[None, :] + at[:, None] * 16, inside, other=0, eviction_policy="evict_first")
        read = prepared(read, kind)
        found = tl.zeros([block, rows], tl.float32)
        total = tl.zeros([block], tl.float32)
        for j in tl.static_range(per_word):
            column = at * per_word + j
            xj = tl.load(x + column, (at < end) & (column < k), other=0.0).to(tl.float32)
            found += numbers(read, j, kind, middle) * (xj * factor(j, kind))[:, None]
            total += xj
        if group > 0:
            groups = (row // 16 * (w // group) * 16 + row % 16)[None, :] + (at // group)[:, None] * 16
            found = found * tl.load(scale + groups, inside, other=0.0).to(tl.float32)
            if minimum is not None:
                found += total[:, None] * tl.load(minimum + groups, inside, other=0.0).to(tl.float32)
        sums += found
    result = tl.sum(sums, axis=0) * last_factor(kind)
    if group == 0:
        result = result * tl.load(scale + row, row < n, other=0.0)
    if is_last and bias is not None:
        result += tl.load(bias + row, row < n, other=0.0).to(tl.float32)
    tl.store(output + split * n + row, rounded(result, output.dtype.element_ty, interpreted), row < n)


@triton.jit
def _few_rows(
    x: tl.tensor,
    words: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    w: tl.tensor,
    part: tl.tensor,
    kind: tl.constexpr,
    middle: tl.constexpr,
    per_word: tl.constexpr,
    group: tl.constexpr,
    is_last: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    interpreted: tl.constexpr,
    batch: tl.constexpr,
) -> None:
    """``output[p, M, N]``; ``x`` is ``[C, M, W]``, so that number ``j`` of neighbouring words meets neighbours."""
    first, split = tl.program_id(0) * rows, tl.program_id(1)
    row, column = first + tl.arange(0, rows), tl.arange(0, batch)
    lane = (row // 16).to(tl.int64) * w * 16 + row % 16
    is_row = row < (n + 15) // 16 * 16
    sums = tl.zeros([rows, batch], tl.float32)
    end = tl.minimum((split + 1) * part, w)
    for start in range(split * part, end, block):
        at = start + tl.arange(0, block)
        inside = is_row[:, None] & (at < end)[None, :]
        read = tl.load(words + lane[:, None] + at[None, :] * 16, inside, other=0, eviction_policy="evict_first")
        read = prepared(read, kind)
        if group > 0:
            groups = (row // 16 * (w // group) * 16 + row % 16)[:, None] + (at // group)[None, :] * 16
            scales = tl.load(scale + groups, inside, other=0.0).to(tl.float32)
            if minimum is not None:
                minima = tl.load(minimum + groups, inside, other=0.0).to(tl.float32)
        for j in tl.static_range(per_word):
            value = numbers(read, j, kind, middle) * factor(j, kind)
            value = value * last_factor(kind)
            if group > 0:
                value = value * scales
                if minimum is not None:
                    value += minima
            places = (j * m + column)[None, :] * w + at[:, None]
            xj = tl.load(x + places, (at < end)[:, None] & (column < m)[None, :], other=0.0)
            sums = dot(rounded(value, x.dtype.element_ty, interpreted), xj, sums, interpreted)
    if group == 0:
        sums = sums * tl.load(scale + row, row < n, other=0.0)[:, None]
    if is_last and bias is not None:
        sums += tl.load(bias + row, row < n, other=0.0).to(tl.float32)[:, None]
    places = (split * m + column)[None, :] * n + row[:, None]
    inside = (row < n)[:, None] & (column < m)[None, :]
    tl.store(output + places, rounded(sums, output.dtype.element_ty, interpreted), inside)


@triton.jit
def _finish(
    parts: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    size: tl.tensor,
    n: tl.tensor,
    count: tl.tensor,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """``output[M, N]``: the sum of ``parts[P, M, N]``, and the bias."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    result = tl.zeros([block], tl.float32)
    for number in range(count):
        result += tl.load(parts + number * size + at, at < size, other=0.0)
    if bias is not None:
        result += tl.load(bias + at % n, at < size, other=0.0).to(tl.float32)
    tl.store(output + at, rounded(result, output.dtype.element_ty, interpreted), at < size)


@triton.jit
def _unpack(
    words: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    output: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    w: tl.tensor,
    kind: tl.constexpr,
    middle: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """``output[N, K]``: program ``(i, j)`` has ``rows`` rows and ``block`` words of each."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < (n + 15) // 16 * 16)[:, None] & (at < w)[None, :]
    lane = (row // 16).to(tl.int64) * w * 16 + row % 16
    read = prepared(tl.load(words + lane[:, None] + at[None, :] * 16, inside, other=0), kind)
    # joined pairs stand innermost: what is joined first must differ in the first digit of a column's number
    if kind == INT4:
        low = tl.join(_column(read, 0, kind, middle), _column(read, 4, kind, middle))
        low = tl.join(low, tl.join(_column(read, 2, kind, middle), _column(read, 6, kind, middle)))
        high = tl.join(_column(read, 1, kind, middle), _column(read, 5, kind, middle))
        high = tl.join(high, tl.join(_column(read, 3, kind, middle), _column(read, 7, kind, middle)))
        value = tl.reshape(tl.join(low, high), [rows, block * 8])
        column = tl.program_id(1) * (block * 8) + tl.arange(0, block * 8)
        kept = (row < n)[:, None] & (column < k)[None, :]
        in_group = group * 8
        groups = (row // 16 * (w // group) * 16 + row % 16)[:, None] + (column // in_group)[None, :] * 16
        value = value * tl.load(scale + groups, kept, other=0.0).to(tl.float32)
        if minimum is not None:
            value += tl.load(minimum + groups, kept, other=0.0).to(tl.float32)
    else:
        low = tl.join(_column(read, 0, kind, middle), _column(read, 2, kind, middle))
        high = tl.join(_column(read, 1, kind, middle), _column(read, 3, kind, middle))
        value = tl.reshape(tl.join(low, high), [rows, block * 4]) * last_factor(kind)
        column = tl.program_id(1) * (block * 4) + tl.arange(0, block * 4)
        kept = (row < n)[:, None] & (column < k)[None, :]
        if group > 0:
            in_group = group * 4
            groups = (row // 16 * (w // group) * 16 + row % 16)[:, None] + (column // in_group)[None, :] * 16
            value = value * tl.load(scale + groups, kept, other=0.0).to(tl.float32)
        else:
            value = value * tl.load(scale + row, row < n, other=0.0)[:, None]
    places = row.to(tl.int64)[:, None] * k + column[None, :]
    tl.store(output + places, rounded(value, output.dtype.element_ty, interpreted), kept)


@triton.jit
def _column(words: tl.tensor, j: tl.constexpr, kind: tl.constexpr, middle: tl.constexpr) -> tl.tensor:
    return numbers(words, j, kind, middle) * factor(j, kind)


@dataclass(frozen=True)
class Packed:
    """A packed weight as the kernels here see it.

    Attributes:
        data: the bytes, ``[ceil(N / 16), ..., 16, 4]``.
        scale: float32 ``[N]``, or float16 ``[ceil(N / 16), groups, 16]``.
        minimum: as ``scale``, of an asymmetric weight in groups.
        kind: ``"int4"``, ``"int8"`` or ``"fp8"``.
        rows, columns: ``N`` and ``K``.
    """

    data: Tensor
    scale: Tensor
    minimum: Tensor | None
    kind: str
    rows: int
    columns: int

    @property
    def words(self) -> Tensor:
        """The bytes as int32 ``[ceil(N / 16), W, 16]``."""
        return self.data.view(torch.int32).squeeze(-1)

    @property
    def per_word(self) -> int:
        """``C``."""
        return 8 if self.kind == "int4" else 4

    def constants(self) -> dict[str, int]:
        """What the kernels are compiled for."""
        kinds = {"int4": INT4.value, "int8": INT8.value, "fp8": FP8.value}
        group = self.words.shape[1] // self.scale.shape[1] if self.scale.ndim == 3 else 0  # in words
        return {
            "kind": kinds[self.kind],
            "middle": 8 if self.minimum is None else 0,
            "group": group,
            "interpreted": is_interpreted(),
        }


def any_product(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """``x`` ``[..., K]`` times the weight, plus ``bias`` ``[N]``: ``[..., N]`` in the type of ``x``.

    For any number of rows: many, and more than one in float32, are a product with the weight unpacked for its time.
    """
    flat = x.reshape(-1, packed.columns)
    count = flat.shape[0]
    if count == 1 or (1 < count <= MOST_ROWS and x.dtype != torch.float32):
        return product(flat, packed, bias).view(*x.shape[:-1], packed.rows)
    return functional.linear(x, unpacked(packed, x.dtype), None if bias is None else bias.to(x.dtype))


def product(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """``x`` ``[M, K]`` times the weight, plus ``bias`` ``[N]``: ``[M, N]`` in the type of ``x``.

    ``M`` is 1 in float32, 1 to :data:`MOST_ROWS` in bfloat16 and float16. Sums are in float32 and rounded once; with
    more than one row, the numbers of the weight are rounded to the type of ``x`` before.
    """
    m, w = x.shape[0], packed.words.shape[1]
    rows, block = (16, 64) if m == 1 else (64, 32)
    parts = _parts(-(-packed.rows // rows), w, block, multiprocessors(x.device))
    output = x.new_empty(m, packed.rows)
    sums = output if parts == 1 else x.new_empty(parts, m, packed.rows, dtype=torch.float32)
    part = -(-w // (parts * block)) * block
    grid = (-(-packed.rows // rows), parts)
    tensors = (packed.words, packed.scale, packed.minimum, bias, sums)
    shared = packed.constants() | {"is_last": parts == 1, "rows": rows, "block": block, "per_word": packed.per_word}
    if m == 1:
        _one_row[grid](x.contiguous(), *tensors, packed.rows, packed.columns, w, part, **shared, enable_fp_fusion=True)
    else:
        batch = max(8, 1 << (m - 1).bit_length())
        shared |= {"batch": batch, "num_stages": 3 if batch <= 16 else 2}  # what shared memory holds
        by_number = _by_number(x, packed.per_word, w)
        _few_rows[grid](by_number, *tensors, m, packed.rows, w, part, **shared, enable_fp_fusion=True)
    if parts > 1:
        size = output.numel()
        constants = {"block": _FINISH, "interpreted": is_interpreted()}
        _finish[(-(-size // _FINISH),)](
            sums, bias, output, size, packed.rows, parts, **constants, enable_fp_fusion=True
        )
    return output


def unpacked(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The weight ``[N, K]`` in ``dtype``, rounded once."""
    output = packed.scale.new_empty(packed.rows, packed.columns, dtype=dtype)
    w, rows, block = packed.words.shape[1], 16, 32
    grid = (-(-packed.rows // rows), -(-w // block))
    tensors = (packed.words, packed.scale, packed.minimum, output)
    constants = packed.constants() | {"rows": rows, "block": block}
    _unpack[grid](*tensors, packed.rows, packed.columns, w, **constants, enable_fp_fusion=True)
    return output


def _by_number(x: Tensor, per_word: int, w: int) -> Tensor:
    """``[M, K]`` to ``[C, M, W]``, zero beyond ``K``."""
    padded = functional.pad(x, (0, w * per_word - x.shape[1]))
    return padded.view(x.shape[0], w, per_word).permute(2, 0, 1).contiguous()


def _parts(programs: int, w: int, block: int, processors: int) -> int:
    """How many programs share the columns of one row: a power of two, each with two blocks of words at least."""
    parts = 1
    while programs * parts * 2 <= _PROGRAMS * processors and w >= parts * 4 * block:
        parts *= 2
    return parts


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many processors a GPU has; 1 where kernels are interpreted."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
