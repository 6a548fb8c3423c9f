"""Whether anybody differentiates: native code leaves no trace for it, and would lose derivatives in silence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether the backward pass is to reach one of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work, with gradients or without.

    In a program that is being compiled it is the compiler that sees to that.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
