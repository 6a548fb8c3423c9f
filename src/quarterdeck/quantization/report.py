"""How far quantized weights are from those that they were made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quarterdeck.quantization.formats import PackedWeight, chosen_rows

_CHUNK = 2**22  # weights that are looked at at once


@dataclass(frozen=True)
class LayerError:
    """What quantization did to one module.

    Attributes:
        name: of the module.
        weight_error: norm of the change of the weight, as a part of the norm of the weight.
        output_error: norm of the change of the outputs for the calibration text, as a part of theirs; None without
            such text, and for embeddings.
    """

    name: str
    weight_error: float
    output_error: float | None = None


def layer_error(name: str, weight: Tensor, packed: PackedWeight, hessian: Tensor | None = None) -> LayerError:
    """The errors of one module.

    Args:
        name: of the module.
        weight: ``[N, K]`` as it was.
        packed: as it is held now.
        hessian: float32 ``[K, K]``, the mean of the outer products of the inputs, with which the norm of the outputs
            of a weight ``W`` is the root of the trace of ``W H W^T``.
    """
    sums = [0.0, 0.0, 0.0, 0.0]  # squares: lost and whole, of the weight and of the outputs
    step = max(_CHUNK // weight.shape[1], 1)
    for start in range(0, weight.shape[0], step):
        whole = weight[start : start + step].float()
        rows = torch.arange(start, start + len(whole), device=weight.device)
        lost = chosen_rows(rows, packed, torch.float32) - whole
        for place, part in enumerate((lost, whole)):
            sums[place] += float(part.square().sum())
            if hessian is not None:
                sums[place + 2] += float(((part @ hessian) * part).sum().clamp(min=0))
    return LayerError(name, _part(*sums[:2]), None if hessian is None else _part(*sums[2:]))


def _part(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if whole else 0.0
