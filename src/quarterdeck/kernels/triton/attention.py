"""Attention of one new token per row to a cache, with keys and values read once and in place.

The query heads of a group share a head of keys and values: they are the rows of one small matrix product, and no key is
repeated. Keys are divided among programs, so that a few heads and a long text keep all of a GPU busy; each gives its
largest score, its sum of exponentials and its weighted values, and a second kernel merges them (Flash-Decoding, Dao et
al. 2023). How many keys there are is read on the device: one recorded launch serves all lengths, and what is not
written yet in a cache of fixed size is not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quarterdeck.kernels.triton import is_interpreted
from quarterdeck.kernels.triton.numerics import dot, rounded
from quarterdeck.kernels.triton.products import multiprocessors

_KEYS = 64
_MOST_PARTS = 64


@triton.jit
def _attend_part(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    last: tl.tensor,
    padding: tl.tensor,
    weighted: tl.tensor,
    statistics: tl.tensor,
    scale: tl.tensor,
    groups: tl.tensor,
    key_row: tl.tensor,
    key_head: tl.tensor,
    key_step: tl.tensor,
    value_row: tl.tensor,
    value_head: tl.tensor,
    value_step: tl.tensor,
    padding_row: tl.tensor,
    shared: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """Program ``(i, p)``: row and group ``i`` of ``B * G``, part ``p`` of its keys."""
    at, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row, group = (at // groups).to(tl.int64), at % groups
    head, column = tl.arange(0, heads), tl.arange(0, columns)
    is_head, is_column = (head < shared)[:, None], (column < width)[None, :]
    asked = tl.load(query + (at * shared + head)[:, None] * width + column[None, :], is_head & is_column, other=0.0)
    count = tl.load(last).to(tl.int32) + 1
    each = tl.cdiv(tl.cdiv(count, parts), block) * block
    end = tl.minimum(count, (part + 1) * each)
    largest = tl.full([heads], float("-inf"), tl.float32)
    total = tl.zeros([heads], tl.float32)
    sums = tl.zeros([heads, columns], tl.float32)
    key += row * key_row + group * key_head
    value += row * value_row + group * value_head
    for start in range(part * each, end, block):
        place = start + tl.arange(0, block)
        inside = place < end
        if padding is not None:
            inside = inside & (tl.load(padding + row * padding_row + place, inside, other=0) != 0)
        places = place.to(tl.int64)[:, None]
        found = tl.load(key + places * key_step + column[None, :], inside[:, None] & is_column, other=0.0)
        scores = dot(asked, tl.trans(found), tl.zeros([heads, block], tl.float32), interpreted) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        raised = tl.maximum(largest, tl.max(scores, axis=1))
        # nothing seen yet: minus infinity less itself would be no number
        base = tl.where(raised == float("-inf"), 0.0, raised)
        shares, kept = tl.exp(scores - base[:, None]), tl.exp(largest - base)
        found = tl.load(value + places * value_step + column[None, :], inside[:, None] & is_column, other=0.0)
        sums = dot(rounded(shares, found.dtype, interpreted), found, sums * kept[:, None], interpreted)
        total = total * kept + tl.sum(shares, axis=1)
        largest = raised
    to = (at * parts + part) * heads + head
    tl.store(weighted + to[:, None] * columns + column[None, :], sums)
    tl.store(statistics + to * 2, largest)
    tl.store(statistics + to * 2 + 1, total)


@triton.jit
def _merge(
    weighted: tl.tensor,
    statistics: tl.tensor,
    output: tl.tensor,
    parts: tl.constexpr,
    shared: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
    columns: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """Program ``i``: one query head of ``B * H``."""
    at = tl.program_id(0)
    part, column = tl.arange(0, parts), tl.arange(0, columns)
    found = (at // shared * parts + part) * heads + at % shared
    largest, total = tl.load(statistics + found * 2), tl.load(statistics + found * 2 + 1)
    highest = tl.max(largest, axis=0)
    share = tl.exp(largest - tl.where(highest == float("-inf"), 0.0, highest))
    sums = tl.sum(share[:, None] * tl.load(weighted + found[:, None] * columns + column[None, :]), axis=0)
    whole = tl.sum(share * total, axis=0)
    result = sums / tl.where(whole == 0.0, 1.0, whole)
    tl.store(output + at * width + column, rounded(result, output.dtype.element_ty, interpreted), column < width)


def decode_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, last: Tensor, padding: Tensor | None, scale: float
) -> Tensor:
    """What :func:`decode_attention` computes."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (kept.float().repeat_interleave(repeats, dim=1) for kept in (key, value))
    seen = (torch.arange(key.shape[2], device=key.device) <= last)[None, None, None]
    if padding is not None:
        seen = seen & padding[:, None, None].bool()
    scores = (query.float() @ key.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=-1).nan_to_num(0.0) @ value).to(query.dtype)


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, last: Tensor, padding: Tensor | None, scale: float
) -> Tensor:
    """Attention of one query per row to the keys up to a place; rows that see nothing give zeros.

    Args:
        query: ``[B, H, 1, D]``, bfloat16 or float16.
        key, value: ``[B, G, S, D]``, of the same type; the last dimension is contiguous.
        last: ``[1]`` integer, the place of the last key that is seen, on the device.
        padding: ``[B, S]`` boolean, False where a key is padding.
        scale: factor on the scores.

    Returns:
        ``[B, H, 1, D]``; sums in float32.
    """
    batch, heads, _, width = query.shape
    groups, places = key.shape[1], key.shape[2]
    shared, columns = heads // groups, max(16, triton.next_power_of_2(width))
    padded = max(16, triton.next_power_of_2(shared))
    parts = _parts(batch * groups, places, multiprocessors(query.device))
    weighted = query.new_empty(batch * groups * parts * padded, columns, dtype=torch.float32)
    statistics = query.new_empty(batch * groups * parts * padded, 2, dtype=torch.float32)
    output = query.new_empty(query.shape)
    sizes = {"shared": shared, "heads": padded, "width": width, "columns": columns, "interpreted": is_interpreted()}
    _attend_part[(batch * groups, parts)](
        *(query.contiguous(), key, value, last, padding, weighted, statistics, scale, groups),
        *key.stride()[:3],
        *value.stride()[:3],
        0 if padding is None else padding.stride(0),
        **sizes,
        block=_KEYS,
        enable_fp_fusion=True,
    )
    _merge[(batch * heads,)](weighted, statistics, output, parts=parts, **sizes, enable_fp_fusion=True)
    return output


def _parts(programs: int, places: int, processors: int) -> int:
    """Among how many programs the keys of a head are divided: a power of two, at most one for each block of keys."""
    parts = 1
    while parts < _MOST_PARTS and programs * parts < 2 * processors and parts * _KEYS < places:
        parts *= 2
    return parts
