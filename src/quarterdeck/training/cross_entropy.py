"""Cross entropy of a linear head, with the gradient made on the way forward: logits are never all there at once.

Logits of a slab of rows become probabilities, loss and gradient while they are in the processor's cache. The idea is
known from fused kernels for GPUs (Hsu et al., "Liger Kernel", 2024); the formula is the gradient of softmax cross
entropy, ``(p - onehot(target)) / count``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
"""The target of a place that is not counted."""
SLAB = 256


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Loss; keeps the gradients of states and weight."""
        counted = targets != IGNORED
        places, size = counted.nonzero().flatten(), max(1, int(counted.sum()))
        to_states = torch.zeros_like(states)
        to_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for chosen in torch.split(places, SLAB):
            rows, wanted = states[chosen], targets[chosen][:, None]
            logits = (rows @ weight.T).float()
            largest = logits.amax(-1, keepdim=True)
            aimed = logits.gather(-1, wanted) - largest
            chances = logits.sub_(largest).exp_()
            sums = chances.sum(-1, keepdim=True)
            total += (sums.log() - aimed).sum()
            chances *= 1.0 / (sums * size)
            chances.scatter_add_(-1, wanted, torch.full_like(aimed, -1.0 / size))
            slopes = chances.to(states.dtype)
            to_states[chosen] = slopes @ weight
            to_weight += slopes.T @ rows
        ctx.save_for_backward(to_states, to_weight)
        ctx.weight_dtype = weight.dtype
        return total / size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """What was kept, times the gradient of the loss."""
        to_states, to_weight = ctx.saved_tensors
        return to_states * gradient, (to_weight * gradient).to(ctx.weight_dtype), None


def linear_cross_entropy(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log softmax(states @ weight^T)[target]`` in nats over the targets that are not `IGNORED`.

    Differentiable once: PyTorch refuses a second derivative with RuntimeError.

    Args:
        states: ``[K, E]``, in the type in which products are computed.
        weight: ``[V, E]`` in the same type.
        targets: ``[K]``.
    """
    loss: Tensor = _LinearCrossEntropy.apply(states, weight, targets)  # type: ignore[no-untyped-call]  # so it is in torch
    return loss
