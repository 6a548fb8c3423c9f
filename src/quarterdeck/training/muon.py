"""Muon: momentum whose direction is made orthogonal, for the matrices inside the layers.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the polynomial is the
quintic Newton-Schulz iteration given there. Matrices of one shape are treated as one batch. The iteration bears
bfloat16, in which its authors compute it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of ``[N, rows, columns]`` near 1 (between about 0.7 and 1.2), keeping directions."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = a * x + torch.bmm(torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x)
    result: Tensor = x.transpose(1, 2) if tall else x
    return result


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay; for 2-D parameters only.

    Args:
        params: matrices.
        lr, momentum, weight_decay: as usual; all can be set per group later.
        dtype: what directions are made orthogonal in.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # returns nothing
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None  # `step` left the others out
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            buffer = state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
            directions.append(parameter.grad.lerp(buffer, group["momentum"]))
        update = orthogonalize(torch.stack(directions).to(self._dtype)).to(parameters[0].dtype)
        rows, columns = parameters[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, change in zip(parameters, update, strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(change, alpha=scale)
