"""Fused elementwise kernels put into a built model from outside, for GPUs with Triton.

    fuse_model(model)

Decoder layers are replaced by layers with the same weights under the same names, which take the norm, the rotary
turn, SiLU times up and the parallel residual each as one kernel. They give what the plain layers give, up to the last
bit but for the exponential and the order of sums in a norm. Where a kernel cannot run (on a CPU, with gradients, in a
program that is being compiled, which fuses by itself) a fused layer is a plain one.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from quarterdeck.errors import InputError
from quarterdeck.kernels import triton
from quarterdeck.kernels.derivatives import is_transformed
from quarterdeck.kernels.rows import FLOAT_TYPES
from quarterdeck.model import CohereAttention, CohereDecoderLayer, CohereLayerNorm
from quarterdeck.model_inputs import LayerInputs

ModelT = TypeVar("ModelT", bound=nn.Module)


class FusedAttention(CohereAttention):
    """`CohereAttention` with queries and keys turned by one kernel."""

    def __init__(self, plain: CohereAttention) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(plain))

    def forward(self, x: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor | None]:
        """See `CohereAttention`."""
        if not _fits(x):
            return super().forward(x, shared)
        from quarterdeck.kernels.triton.elementwise import rotate  # Triton is there

        query = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
        key = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # [B, T, G, D]
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, G, T, D]
        if self.q_norm is not None and self.k_norm is not None:
            query, key = _normed(query, self.q_norm), _normed(key, self.k_norm)
        if self.spec.rotary:
            query, key = rotate(query, key, *shared.tables)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        dropout = self.attention_dropout if self.training else 0.0
        window = self.spec.attention_window
        output, weights = shared.attended(
            self.layer_idx, query, key, value, window=window, scale=self.scaling, dropout=dropout
        )
        return self.o_proj(output.transpose(1, 2).flatten(2)), weights


class FusedDecoderLayer(CohereDecoderLayer):
    """`CohereDecoderLayer` in few kernels."""

    def __init__(self, plain: CohereDecoderLayer) -> None:
        nn.Module.__init__(self)
        self.self_attn = FusedAttention(plain.self_attn)
        self.mlp = plain.mlp
        self.input_layernorm = plain.input_layernorm
        self.train(plain.training)

    def forward(self, x: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor | None]:
        """See `CohereDecoderLayer`."""
        if not _fits(x):
            return super().forward(x, shared)
        from quarterdeck.kernels.triton.elementwise import add_parallel, silu_multiply  # Triton is there

        normed = _normed(x, self.input_layernorm)
        attended, weights = self.self_attn(normed, shared)
        gate, up = self.mlp.gate_proj(normed), self.mlp.up_proj(normed)
        opened = silu_multiply(gate, up) if self.mlp.act_fn is functional.silu else self.mlp.act_fn(gate) * up
        return add_parallel(x, attended, self.mlp.down_proj(opened)), weights


def fuse_model(model: ModelT) -> ModelT:
    """Replaces the decoder layers of a built model by fused ones and returns the model, which has changed.

    Weights, their names, and what was done to linears (quantization) stay. Where there is no Triton nothing is lost.

    Raises:
        InputError: the model has no decoder layers of the Cohere architecture, or hooks on them: parts of it are
            elsewhere (``device_map``), or somebody listens.
    """
    found = {name: layer for name, layer in model.named_modules() if type(layer) is CohereDecoderLayer}
    if not found and not any(isinstance(layer, FusedDecoderLayer) for layer in model.modules()):
        raise InputError(f"{type(model).__name__} has no CohereDecoderLayer: give a CohereModel or CohereForCausalLM")
    for name, layer in found.items():
        if any(hasattr(part, "_hf_hook") or part._forward_hooks or part._forward_pre_hooks for part in layer.modules()):
            raise InputError(
                f"{name} has hooks, which a fused layer passes by: remove them, or load without device_map"
            )
    for name, layer in found.items():
        model.set_submodule(name, FusedDecoderLayer(layer))
    return model


def _fits(x: Tensor) -> bool:
    """Whether kernels can take the place of PyTorch's functions."""
    is_traced = torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed()
    return not is_traced and x.dtype in FLOAT_TYPES and triton.usable(x)


def _normed(x: Tensor, norm: CohereLayerNorm) -> Tensor:
    from quarterdeck.kernels.triton.elementwise import layer_norm  # Triton is there

    return layer_norm(x, norm.weight, norm.eps)
