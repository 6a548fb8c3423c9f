"""Decoder layers for training a small model on a CPU: two matrix products per layer in place of seven.

    join_layers(model)

A narrow model spends its time on the way to and from many small products. Here the five that read the normed states
are one, and so are the two that write to the residual stream, since Cohere's blocks are parallel. Weights stay where
they are, under their names, and get the gradients that plain layers give them, up to the order of sums.

Shapes: those of `quarterdeck.model`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quarterdeck.errors import InputError
from quarterdeck.model import CohereDecoderLayer
from quarterdeck.model_inputs import LayerInputs


class _Turn(torch.autograd.Function):
    """Rotary positions; the way back turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor) -> Tensor:
        """``[B, T, heads, D]`` by complex ``[B or 1, T, 1, D / 2]``."""
        ctx.turns = turns
        return _turned(x, turns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of ``x``."""
        return _turned(gradient, ctx.turns.conj()), None


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class JoinedLayer(CohereDecoderLayer):
    """`CohereDecoderLayer` with joined products; without biases, norms of heads and hooks on its linears."""

    def __init__(self, plain: CohereDecoderLayer) -> None:
        nn.Module.__init__(self)
        self.self_attn, self.mlp, self.input_layernorm = plain.self_attn, plain.mlp, plain.input_layernorm
        self.train(plain.training)

    def forward(self, x: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor | None]:
        """See `CohereDecoderLayer`."""
        attention, mlp = self.self_attn, self.mlp
        readers = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        read = functional.linear(self.input_layernorm(x), torch.cat([one.weight for one in readers]))
        turning, value, gate, up = torch.split(read, self._widths(), dim=-1)
        heads = attention.q_proj.out_features // attention.head_dim
        query_key = turning.view(*x.shape[:2], -1, attention.head_dim)  # [B, T, H + G, D]
        if attention.spec.rotary:
            turns = torch.complex(shared.tables[0].float(), shared.tables[1].float())[:, :, None]
            query_key = _Turn.apply(query_key, turns)  # type: ignore[no-untyped-call]  # so it is in torch
        query, key = torch.split(query_key.transpose(1, 2), [heads, query_key.shape[2] - heads], dim=1)
        attended, weights = shared.attended(
            attention.layer_idx,
            query,
            key,
            value.view(*x.shape[:2], -1, attention.head_dim).transpose(1, 2),
            window=attention.spec.attention_window,
            scale=attention.scaling,
            dropout=attention.attention_dropout if self.training else 0.0,
        )
        written = torch.cat([attended.transpose(1, 2).flatten(2), mlp.act_fn(gate) * up], dim=-1)
        return x + functional.linear(written, torch.cat([attention.o_proj.weight, mlp.down_proj.weight], 1)), weights

    def _widths(self) -> list[int]:
        attention, mlp = self.self_attn, self.mlp
        keys = attention.k_proj.out_features
        return [attention.q_proj.out_features + keys, keys, mlp.gate_proj.out_features, mlp.up_proj.out_features]


def join_layers(model: nn.Module) -> None:
    """Replaces the decoder layers of a model by joined ones.

    Raises:
        InputError: layers with biases, norms of heads, or linears that are no plain ones.
    """
    for name, layer in list(model.named_modules()):
        if type(layer) is CohereDecoderLayer:
            linears = [*layer.self_attn.children(), *(getattr(layer.mlp, f"{x}_proj") for x in ("gate", "up", "down"))]
            if any(type(one) is not nn.Linear or one.bias is not None for one in linears):
                raise InputError(f"{name} has biases, norms of heads or adapted linears, which cannot be joined")
            model.set_submodule(name, JoinedLayer(layer))
