"""What tensors are called: in GGUF files of architecture ``command-r``, and in the checkpoints of `quarterdeck`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WHOLE: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OWN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def from_gguf(name: str) -> str:
    """``blk.3.attn_q.weight``: ``model.layers.3.self_attn.q_proj.weight``. An unknown name stays as it is."""
    if (match := _GGUF_LAYER.fullmatch(name)) and match[2] in _IN_LAYER:
        return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
    module, _, leaf = name.rpartition(".")
    return f"{_WHOLE[module]}.{leaf}" if module in _WHOLE else name


def to_gguf(name: str) -> str | None:
    """The other way; None for a name that has no place in such a file."""
    if match := _OWN_LAYER.fullmatch(name):
        short = {own: gguf for gguf, own in _IN_LAYER.items()}.get(match[2])
        return None if short is None else f"blk.{match[1]}.{short}.{match[3]}"
    module, _, leaf = name.rpartition(".")
    short = {own: gguf for gguf, own in _WHOLE.items()}.get(module)
    return None if short is None else f"{short}.{leaf}"
