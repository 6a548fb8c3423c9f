"""Command-R as OpenVINO runs it: a plain torch module that its converter can trace, and the steps of a usual export.

The module is the architecture written once more in the fewest lines, with keys and values as inputs and outputs; the
export turns those into state (as optimum-intel does) and compresses weights with nncf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quarterdeck import CohereForCausalLM


class Traceable(nn.Module):
    """Logits of the last position, and the keys and values of all positions."""

    def __init__(self, model: CohereForCausalLM) -> None:
        super().__init__()
        self.config, self.body, self.head = model.config, model.model, model.lm_head
        self.register_buffer("frequencies", model.model.rotary_emb.inv_freq.float().clone())

    def forward(self, ids: Tensor, past: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        x = self.body.embed_tokens(ids)
        start, count = past[0][0].shape[2], ids.shape[1]
        places = torch.arange(start + count)
        mine = places[start:]
        angles = mine[:, None].float() * self.frequencies
        cos, sin = angles.cos(), angles.sin()  # [T, D/2]
        allowed = (places[None] <= mine[:, None])[None, None]  # [1, 1, T, S]
        kept: list[Tensor] = []
        for layer, stored in zip(self.body.layers, past, strict=True):
            normed = layer.input_layernorm(x)
            attended, key, value = self.attend(layer.self_attn, normed, stored, cos, sin, allowed)
            kept += [key, value]
            x = x + attended + layer.mlp(normed)
        return (self.head(self.body.norm(x[:, -1:])) * self.config.logit_scale, *kept)

    def attend(
        self, own: Any, x: Tensor, stored: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, allowed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = self.config.head_dim
        query, key, value = (part(x).unflatten(-1, (-1, width)) for part in (own.q_proj, own.k_proj, own.v_proj))
        query, key, value = rotated(query, cos, sin), rotated(key, cos, sin), value.transpose(1, 2)
        key, value = torch.cat((stored[0], key), dim=2), torch.cat((stored[1], value), dim=2)
        repeats = self.config.num_attention_heads // self.config.num_key_value_heads
        keys, values = (part[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2) for part in (key, value))
        output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=allowed)
        return own.o_proj(output.transpose(1, 2).flatten(2)), key, value


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[B, T, heads, D]`` turned, as ``[B, heads, T, D]``."""
    x = x.transpose(1, 2)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def export(model: CohereForCausalLM, path: Path) -> None:
    """Write the model with weights in 8 bits, as nncf compresses them without data."""
    import nncf
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    config = model.config
    heads, width, layers = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
    past = [(torch.zeros(1, heads, 2, width), torch.zeros(1, heads, 2, width)) for _ in range(layers)]
    with torch.no_grad():
        converted = openvino.convert_model(Traceable(model), example_input=(torch.zeros(1, 3, dtype=torch.int64), past))
    ids, *states = converted.inputs
    ids.get_node().set_partial_shape(openvino.PartialShape([1, -1]))
    for state in states:
        state.get_node().set_partial_shape(openvino.PartialShape([1, heads, -1, width]))
    for number, (state, output) in enumerate(zip(states, converted.outputs[1:], strict=True)):
        state.get_tensor().set_names({f"past.{number}"})
        output.get_tensor().set_names({f"present.{number}"})
    converted.validate_nodes_and_infer_types()
    pairs = {f"past.{number}": f"present.{number}" for number in range(2 * layers)}
    apply_make_stateful_transformation(converted, pairs)
    small = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(small, path, compress_to_fp16=False)
