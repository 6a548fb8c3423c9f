"""Embeddings and output heads with more or fewer rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def resized_rows(weight: Tensor, rows: int, fill: Callable[[Tensor], None] | None) -> nn.Parameter:
    """A copy of ``weight`` ``[V, E]`` with ``rows`` rows, trained if ``weight`` is.

    Args:
        weight: the old rows, of which the first are kept.
        rows: the new number of rows, at least 1.
        fill: initialises new rows in place; None draws them around the mean of the old ones.
    """
    resized = weight.new_empty(rows, weight.shape[1])
    kept = min(rows, weight.shape[0])
    resized[:kept] = weight[:kept]
    if rows > kept:
        if fill is None:
            resized[kept:] = _rows_like(weight, rows - kept)
        else:
            fill(resized[kept:])
    return nn.Parameter(resized, requires_grad=weight.requires_grad)


def _rows_like(weight: Tensor, count: int, spread: float = 1e-9) -> Tensor:
    """``count`` rows from a normal distribution with the mean and ``spread`` times the covariance of the rows.

    Rows near the mean raise the loss least: a new token gets about the average probability, where a row drawn
    as for an untrained model may get nearly all of it (Hewitt, "Initializing new word embeddings for pretrained
    language models", 2021). With z standard normal, ``z @ (weight - mean) / sqrt(V)`` has exactly the
    covariance of the rows; nothing of size E x E or a second V x E is needed for it.
    """
    mean = weight.mean(dim=0, dtype=torch.float32)  # [E]
    noise = torch.randn(count, weight.shape[0], device=weight.device, dtype=torch.float32)  # [count, V]
    weighted = (noise.to(weight.dtype) @ weight).float() - noise.sum(dim=1, keepdim=True) * mean  # [count, E]
    scale: float = (spread / weight.shape[0]) ** 0.5
    return (mean + weighted * scale).to(weight.dtype)
