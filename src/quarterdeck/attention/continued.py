"""A block of a prompt after the part that is in the cache, without a mask: what keeps long prompts cheap.

New queries see all of the past, and of their own block a triangle. Attention to each is a plain call without a matrix,
and the two results are one when weighed by the sums of exponentials behind them (the merge of FlashAttention, Dao et
al. 2022, and of ring attention)::

    lse = log(exp(lse_1) + exp(lse_2))      output = output_1 * exp(lse_1 - lse) + output_2 * exp(lse_2 - lse)

A mask would hold ``T x S`` numbers: for a block of 2,048 after 129,024 tokens 0.25 GiB, and 1 GiB as float32.

Shapes: ``B`` sequences, ``H`` query heads, ``G`` key-value heads, ``T`` queries, ``S`` keys, ``D`` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quarterdeck.attention.mask import AttentionMask


def can_continue(query: Tensor, mask: AttentionMask, dropout: float) -> bool:
    """Whether :func:`continued_attention` does it: on the CPU, without gradients, several queries of a plain text."""
    is_block = mask.is_plain and mask.queries > 1 and mask.keys > mask.queries
    return is_block and query.device.type == "cpu" and not dropout and not torch.is_grad_enabled()


def continued_attention(query: Tensor, key: Tensor, value: Tensor, past: int, scale: float) -> Tensor:
    """Causal attention of queries that follow ``past`` keys.

    Args:
        query: ``[B, H, T, D]``.
        key: ``[B, G, past + T, D]``.
        value: ``[B, G, past + T, D]``.
        past: how many keys come before the first query.
        scale: factor on the scores.

    Returns:
        ``[B, H, T, D]``, merged in float32 at least and rounded once.
    """
    if not past:
        return _with_lse(query, key, value, scale, causal=True)[0]
    before, before_lse = _with_lse(query, key[:, :, :past], value[:, :, :past], scale, causal=False)
    block, block_lse = _with_lse(query, key[:, :, past:], value[:, :, past:], scale, causal=True)
    lse = torch.logaddexp(before_lse, block_lse)
    before_share, block_share = (before_lse - lse).exp_()[..., None], (block_lse - lse).exp_()[..., None]
    return torch.addcmul(before * before_share, block, block_share).to(query.dtype)


def _with_lse(query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention ``[B, H, T, D]`` and the logarithms ``[B, H, T]`` of its sums of exponentials."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )
    return output, lse
