"""Attention through ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from quarterdeck.attention.continued import can_continue, continued_attention
from quarterdeck.attention.mask import AttentionMask
from quarterdeck.kernels import triton
from quarterdeck.kernels.derivatives import is_transformed


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
) -> tuple[Tensor, None]:
    """As :func:`~quarterdeck.attention.eager.eager_attention`, without the weights.

    A row that sees nothing (padding before a text) comes out as zeros here and as an average there; neither is
    ever looked at by a real token.
    """
    batch, heads, queries, width = query.shape
    if can_continue(query, mask, dropout):
        end = mask.start + queries  # behind it a cache of fixed size has nothing yet
        return continued_attention(query, key[:, :, :end], value[:, :, :end], mask.start, scale), None
    if _reads_in_place(query, key, value, mask, dropout):
        return _read_in_place(query, key, value, mask, scale), None
    if queries == 1 and mask.explicit is None:
        # the heads of a group all see the same keys: let them be the queries of one head, and repeat nothing
        query = query.view(batch, key.shape[1], -1, width)
    bare = mask.sees_all or mask.is_square_causal
    allowed = None if bare else mask.allowed()
    if allowed is not None and allowed.is_floating_point():
        allowed = mask.additive(query.dtype)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1 and allowed is not None and query.device.type == "cuda":
        # with a mask, no fused CUDA kernel takes grouped heads: repeating keys beats the unfused fallback
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=allowed,
        dropout_p=dropout,
        is_causal=mask.is_square_causal and queries > 1,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.view(batch, heads, queries, width), None


def _reads_in_place(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout: float) -> bool:
    """Whether a step of decoding goes to our kernel in Triton, which reads no more keys than there are.

    A program that is being compiled keeps torch's own, which the compiler knows.
    """
    is_step = query.shape[2] == 1 and mask.explicit is None and mask.documents is None and mask.window is None
    if not is_step or dropout or torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed():
        return False
    if query.dtype not in (torch.bfloat16, torch.float16) or not query.dtype == key.dtype == value.dtype:
        return False
    return key.stride(-1) == 1 == value.stride(-1) and triton.usable(query)


def _read_in_place(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    from quarterdeck.kernels.triton.attention import decode_attention  # Triton is there

    last = mask.made("last", mask.query_positions)
    return decode_attention(query, key, value, last, mask.real_keys(), scale)
