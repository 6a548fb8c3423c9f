"""Unquantized linears that use the kernels where these are faster: put into a built model from outside, by name.

    use_native_linears(model)

A step of decoding reads every weight once; in 16 bit, PyTorch reads them on a CPU at a fraction of the memory's speed,
and :func:`quarterdeck.kernels.dense.linear` near it. What is put in is an ``nn.Linear`` by class, parameters, names and
behaviour, and computes as one wherever anything else than the plain product of a few rows is wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from quarterdeck.kernels import dense, native
from quarterdeck.kernels.derivatives import is_transformed, wants_gradient

TYPES = (torch.bfloat16, torch.float16)
"""Types of weights that PyTorch reads slowly; float32 it reads as fast as memory gives it."""


class NativeLinear(nn.Linear):
    """An ``nn.Linear`` with sums in float32, rounded once, for a few rows in 16 bit on the CPU without gradients.

    It has nothing of its own: an ``nn.Linear`` becomes one, or one an ``nn.Linear``, when its class is changed.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        if _is_plain_product(input, self.weight, self.bias):
            return dense.linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


def use_native_linears(model: nn.Module) -> list[str]:
    """Makes :class:`NativeLinear` of the linears of ``model`` that may gain by it; returns their names.

    These are linears by that very class, in 16 bit, on the CPU, not small (:data:`quarterdeck.kernels.dense`
    ``.LEAST_WEIGHTS``) and without a ``forward`` of their own, which hooks of a divided model give them. None are where
    the native library is not there.
    """
    if not native.levels():
        return []
    chosen = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and _gains(module)}
    for module in chosen.values():
        module.__class__ = NativeLinear
    return list(chosen)


def is_linear(module: nn.Module) -> bool:
    """Whether it is an ``nn.Linear`` and nothing more: a class derived from it may hold other weights."""
    return type(module) in (nn.Linear, NativeLinear)


def _gains(linear: nn.Linear) -> bool:
    weight = linear.weight
    in_16_bit = weight.dtype in TYPES and weight.device.type == "cpu"
    return in_16_bit and weight.numel() >= dense.LEAST_WEIGHTS and "forward" not in vars(linear)


def _is_plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nobody but the caller can tell how the product was computed, and its tensors are what they seem.

    :func:`quarterdeck.kernels.dense.linear` then decides by rows and size. A program that is compiled or traced, a
    function transform, forward-mode differentiation, a mode that watches operators and autocast want PyTorch's own
    product; so do tensors of other classes, and those that do not fit, for its error.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    parts = (x, weight) if bias is None else (x, weight, bias)
    if any(type(part) not in (Tensor, nn.Parameter) or part.device.type != "cpu" for part in parts):
        return False
    if weight.dtype not in TYPES or any(part.dtype != weight.dtype for part in parts) or not x.ndim:
        return False
    if wants_gradient(*parts):
        return False
    watched = torch._C._len_torch_dispatch_stack() or is_transformed()
    return not watched and not torch.is_autocast_enabled("cpu") and x.shape[-1] == weight.shape[-1]
