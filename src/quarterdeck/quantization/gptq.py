"""GPTQ: rounding one column of a weight after the other, so that later columns make up for what earlier ones lose.

What is kept small is not the error of the weight but that of its products with what the layer sees: with the mean
``H = X^T X / n`` over calibration inputs ``X`` ``[n, K]``, the error of the outputs is ``(W - Q) H (W - Q)^T``. After
column ``k`` is rounded, the columns not yet rounded move by the amount that lowers this most, which the Cholesky
factor of the inverse of ``H`` gives (Frantar et al., "GPTQ", 2022, algorithm 1). Columns go in the order of their
weight in ``H``, largest first; the scales are chosen before, so that groups stay groups of neighbours.

Shapes: ``N`` rows, ``K`` columns, ``G`` groups of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.kernels import int4, int8
from quarterdeck.quantization.config import QuantizationConfig
from quarterdeck.quantization.formats import PackedWeight, format_of, packed_in_slabs

_DAMPING = 0.01  # of the mean of the diagonal, added to it; columns that are always zero need it
_BLOCK = 128  # columns whose effect on the later ones is applied at once
_SLAB = 4096  # rows that are rounded at once
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # how much of a group's range the grid may cover


@dataclass(frozen=True)
class Grid:
    """The numbers that the values of a packed weight stand for: ``value * scale + offset``.

    Attributes:
        scale: ``[N, G]``, as it is stored.
        minimum: ``[N, G]``, as it is stored; None for a symmetric grid.
        group: columns in a group.
        low, high: the least and the largest value.
    """

    scale: Tensor
    minimum: Tensor | None
    group: int
    low: int
    high: int

    def spread(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and offset of each weight, float32 ``[N, K]``; no scale is zero."""
        scale = self.scale.float()
        offset = scale * (-8.0 if self.high == 15 else 0.0) if self.minimum is None else self.minimum.float()
        scale = torch.where(scale == 0, 1.0, scale)
        wide = [part.repeat_interleave(self.group, dim=1)[:, :columns] for part in (scale, offset)]
        return wide[0], wide[1]

    def rounded(self, weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """The nearest values, as floating numbers."""
        return ((weight - offset) / scale).round().clamp(self.low, self.high)

    def pack(self, values: Tensor) -> PackedWeight:
        """Values ``[N, K]`` in the layout of the kernels."""
        if self.high == 15:
            return int4.pack(values.to(torch.uint8), self.scale, self.minimum)
        return int8.pack(values.to(torch.int8), self.scale[:, 0])


def best_grid(weight: Tensor, config: QuantizationConfig, importance: Tensor) -> Grid:
    """The grid with the least error, among those that cover all or some of each group's range.

    Args:
        weight: float32 ``[N, K]``.
        config: the format.
        importance: ``[K]``, what the square of an error in a column counts.
    """
    if config.format == "int8":
        scale = int8.quantize(weight)[1]
        return Grid(scale[:, None], None, weight.shape[1], -127, 127)
    _, scale, minimum = int4.quantize(weight, symmetric=config.symmetric)
    best: Grid | None = None
    least = torch.empty(0)
    for shrink in _SHRINK:
        grid = _shrunk(scale, minimum, shrink)
        error = _error(weight, grid, importance)  # [N, G]
        if best is None:
            best, least = grid, error
            continue
        better = error < least
        chosen = None
        if grid.minimum is not None and best.minimum is not None:
            chosen = torch.where(better, grid.minimum, best.minimum)
        best = Grid(torch.where(better, grid.scale, best.scale), chosen, grid.group, 0, 15)
        least = torch.where(better, error, least)
    assert best is not None  # there is more than one way to shrink
    return best


def gptq(weight: Tensor, hessian: Tensor, config: QuantizationConfig, *, slab: int = _SLAB) -> PackedWeight:
    """A weight rounded so that its products with what ``hessian`` tells of its inputs change least.

    Rows do not depend on each other, so that some are done at a time: it takes about ten float32 copies of a slab.

    Args:
        weight: ``[N, K]``, floating.
        hessian: float32 ``[K, K]``, the mean of the outer products of the inputs.
        config: the format.
        slab: rows at a time, a multiple of 16.

    Raises:
        InputError: inputs that are not finite.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    if not bool(diagonal.isfinite().all()):
        raise InputError(
            "of the calibration text it sees infinities or NaNs: either a weight before it is not finite, or the model "
            "needs more range than its type has (`quarterdeck convert --type bf16`)"
        )
    diagonal.add_(_DAMPING * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny))
    order = diagonal.argsort(descending=True)
    factor = _inverse_factor(hessian[order][:, order])
    back = order.argsort()

    def rounded(rows: Tensor) -> PackedWeight:
        rows = rows.detach().float()
        grid = best_grid(rows, config, diagonal)
        scale, offset = (part[:, order] for part in grid.spread(rows.shape[1]))
        return grid.pack(_round_in_order(rows[:, order], factor, grid, scale, offset)[:, back].contiguous())

    form = format_of(config)
    return form.view(packed_in_slabs(form, weight, slab, rounded), *weight.shape)


def _round_in_order(weight: Tensor, factor: Tensor, grid: Grid, scale: Tensor, offset: Tensor) -> Tensor:
    """Values of ``weight`` ``[N, K]``, which changes, column by column.

    ``factor`` is the upper Cholesky factor of the inverse.
    """
    values = torch.empty_like(weight)
    for start in range(0, weight.shape[1], _BLOCK):
        stop = min(start + _BLOCK, weight.shape[1])
        errors = torch.empty_like(weight[:, start:stop])
        for k in range(start, stop):
            column = weight[:, k]
            values[:, k] = grid.rounded(column, scale[:, k], offset[:, k])
            error = (column - values[:, k] * scale[:, k] - offset[:, k]) / factor[k, k]
            weight[:, k:stop] -= error[:, None] * factor[k, k:stop]
            errors[:, k - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return values


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of a symmetric positive matrix; in float64 where float32 is too coarse.

    Raises:
        InputError: the matrix is not positive even so.
    """
    for precise in (hessian, hessian.double()):
        lower, failed = torch.linalg.cholesky_ex(precise)
        upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and not int(failed_too):
            factor: Tensor = upper.float()
            return factor
    raise InputError("the statistics of a layer's inputs cannot be inverted; give more or more varied calibration text")


def _shrunk(scale: Tensor, minimum: Tensor | None, shrink: float) -> Grid:
    """The grid over a part of each group's range: around zero, or around its middle."""
    smaller = (scale.float() * shrink).half()
    if minimum is None:
        return Grid(smaller, None, int4.SYMMETRIC_GROUP, 0, 15)
    raised = (minimum.float() + scale.float() * 7.5 * (1 - shrink)).half()
    return Grid(smaller, raised, int4.ASYMMETRIC_GROUP, 0, 15)


def _error(weight: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    """Sum of weighted squares of errors by group, ``[N, G]``."""
    scale, offset = grid.spread(weight.shape[1])
    lost = weight - grid.rounded(weight, scale, offset) * scale - offset
    weighted = lost.square() * importance
    padded = torch.nn.functional.pad(weighted, (0, -weighted.shape[1] % grid.group))
    return padded.view(len(weight), -1, grid.group).sum(dim=-1)
