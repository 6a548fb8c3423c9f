"""Several documents in a row, told by their lengths: the arguments that collators for flash-attn make.

Whoever packs by ``position_ids`` alone needs none of this: see :func:`quarterdeck.attention.mask.packed_documents`.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from quarterdeck.attention.mask import check_tensor
from quarterdeck.errors import InputError


class PackedLengths(TypedDict, total=False):
    """Where documents begin in the rows of a batch, laid end to end; any backend takes it.

    Attributes:
        cu_seq_lens_q: ``[documents + 1]`` integers: 0, where the second document begins, ..., the end.
        cu_seq_lens_k: the same.
        max_length_q: the longest document; a hint, since it is worked out in any case.
        max_length_k: the same.
    """

    cu_seq_lens_q: Tensor | None
    cu_seq_lens_k: Tensor | None
    max_length_q: int | None
    max_length_k: int | None


def given_lengths(packed: PackedLengths) -> Tensor | None:
    """The begins of documents, if they are given.

    Raises:
        TypeError: arguments of other names, as Python says it of any function.
        InputError: begins that are no integers, or of keys only, or not the same for queries and keys.
    """
    if unknown := sorted(set(packed) - set(PackedLengths.__annotations__)):
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")
    begins, of_keys = packed.get("cu_seq_lens_q"), packed.get("cu_seq_lens_k")
    if begins is None:
        if any(value is not None for value in packed.values()):
            raise InputError("cu_seq_lens_k, max_length_q and max_length_k belong to cu_seq_lens_q; give that too")
        return None
    check_tensor("cu_seq_lens_q", begins)
    if begins.ndim != 1 or begins.is_floating_point():
        raise InputError(f"cu_seq_lens_q is {begins.dtype} {list(begins.shape)}, but must be integers [documents + 1]")
    compiling = torch.compiler.is_compiling()
    if of_keys is not None and of_keys is not begins and not compiling and not torch.equal(begins, of_keys):
        raise InputError("cu_seq_lens_k is not cu_seq_lens_q, but documents see only themselves: give the same")
    return begins


def documents_of(begins: Tensor, batch: int, length: int) -> Tensor:
    """``[documents + 1]`` begins in ``batch`` rows of ``length`` tokens to ``[batch, length]`` document numbers.

    Raises:
        InputError: they do not go from 0 to the end, upward.
    """
    tokens = batch * length
    if not torch.compiler.is_compiling():
        places = begins.tolist()
        if places[:1] != [0] or places[-1] != tokens or places != sorted(places):
            raise InputError(f"cu_seq_lens_q is {places}, but must rise from 0 to {tokens}, the number of tokens")
    order = torch.arange(tokens, device=begins.device)
    return torch.searchsorted(begins[1:].contiguous(), order.to(begins.dtype), right=True).view(batch, length)
