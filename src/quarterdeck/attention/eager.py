"""Attention spelled out: slow, exact, and the definition that every other backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quarterdeck.attention.mask import AttentionMask


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``softmax(query key^T * scale + mask) value``.

    Key-value head ``j`` serves the ``H / G`` query heads from ``j H / G`` on. Scores are in the type of the
    activations, the softmax is in float32 and rounded back, as in transformers.

    Args:
        query: ``[B, H, T, D]``.
        key: ``[B, G, S, D]``.
        value: ``[B, G, S, D]``.
        mask: who sees whom.
        scale: factor on the scores.
        dropout: probability of dropping a weight.

    Returns:
        The output ``[B, H, T, D]`` and the attention weights ``[B, H, T, S]``.
    """
    batch, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    folded = query.reshape(batch, groups, -1, width)  # [B, G, H/G * T, D]: keys are not repeated
    scores = (folded @ key.transpose(2, 3)).view(batch, heads, queries, keys) * scale
    if not mask.sees_all:
        scores = scores + mask.additive(scores.dtype)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, dropout, training=dropout > 0)
    output = weights.view(batch, groups, -1, keys) @ value
    return output.view(batch, heads, queries, width), weights
