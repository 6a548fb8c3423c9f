"""The same tiny random model twice: once in transformers, once in Quarterdeck.

Weights are drawn wide (so that attention is far from uniform and every term matters), norm weights around one but
not at one (so that a forgotten weight shows).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quarterdeck import CohereConfig, CohereForCausalLM

transformers = pytest.importorskip("transformers", reason="the peer that results are compared with")

TINY: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 7,
    "logit_scale": 0.25,
}
TOLERANCE = 1e-5
"""Of scale, in float32: what issue and house promise."""

# one for every switch of the architecture, and some together
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "qk_norm": {"use_qk_norm": True},
    "qk_norm_gqa": {"use_qk_norm": True, "num_key_value_heads": 2},
    "bias": {"attention_bias": True},
    "bias_qk_norm_mqa_untied": {
        "attention_bias": True,
        "use_qk_norm": True,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    },
    "untied": {"tie_word_embeddings": False},
    "gelu": {"hidden_act": "gelu"},
    "head_dim_larger": {"head_dim": 16},
    "head_dim_smaller_gqa": {"head_dim": 6, "num_key_value_heads": 2},
    "eps": {"layer_norm_eps": 0.1, "use_qk_norm": True},
    "theta": {"rope_theta": 75_000_000.0},
    "scale_above_one": {"logit_scale": 5 / 6 * 10},
    "one_layer": {"num_hidden_layers": 1},
    "three_layers_six_heads": {"num_hidden_layers": 3, "num_attention_heads": 6, "hidden_size": 36, "head_dim": 8},
}
_SHORT, _LONG = [1.0, 1.1, 1.2, 1.3], [2.0, 3.0, 4.0, 5.0]
# the last number of a name is the trained length: parity is checked below and far beyond it
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_scaling": {"rope_type": "default"}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "dynamic_8": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
    "dynamic_64": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn_8": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 8},
    "yarn_original": {
        "rope_scaling": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16},
    },
    "yarn_mscale": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.9,
            "truncate": False,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
        },
    },
    "yarn_attention_factor": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3}},
    "longrope_8": {
        "rope_scaling": {"rope_type": "longrope", "factor": 4.0, "short_factor": _SHORT, "long_factor": _LONG},
        "max_position_embeddings": 8,
    },
    "longrope_64": {
        "rope_scaling": {"rope_type": "longrope", "factor": 4.0, "short_factor": _SHORT, "long_factor": _LONG},
    },
    "longrope_original_8": {
        "rope_scaling": {"rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG},
        "original_max_position_embeddings": 8,
    },
    "longrope_attention_factor": {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": _SHORT,
            "long_factor": _LONG,
            "attention_factor": 0.8,
            "factor": 1.0,
        },
        "max_position_embeddings": 8,
    },
    "llama3_16": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}


@dataclass(frozen=True)
class Pair:
    """Two models with equal weights, in evaluation mode."""

    ours: CohereForCausalLM
    theirs: Any


def make_pair(attention: str = "eager", *, seed: int = 0, std: float = 0.3, **fields: Any) -> Pair:
    """Both models of configuration ``TINY | fields``, with the same random weights."""
    fields = TINY | fields
    theirs = transformers.CohereForCausalLM(transformers.CohereConfig(**fields, attn_implementation=attention))
    randomise(theirs, seed, std)
    ours = CohereForCausalLM(CohereConfig(**fields, attn_implementation=attention))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return Pair(ours.eval(), theirs.eval())


def make_ours(attention: str | None = None, *, seed: int = 0, std: float = 0.3, **fields: Any) -> CohereForCausalLM:
    """Only ours, likewise random."""
    model = CohereForCausalLM(CohereConfig(**(TINY | fields), attn_implementation=attention))
    randomise(model, seed, std)
    return model.eval()


def make_low_precision_pair(folder: Path, dtype: torch.dtype, attention: str, **fields: Any) -> tuple[Pair, Pair]:
    """The pair in float32 and, of weights that ``dtype`` holds exactly, the pair loaded in ``dtype``."""
    exact = make_pair(attention, std=0.1, **fields)
    weights = {name: tensor.to(dtype).float() for name, tensor in exact.theirs.state_dict().items()}
    exact.theirs.load_state_dict(weights)
    exact.ours.load_state_dict(weights)
    exact.theirs.save_pretrained(folder)
    options = {"dtype": dtype, "attn_implementation": attention}
    theirs = transformers.CohereForCausalLM.from_pretrained(folder, **options)
    ours = CohereForCausalLM.from_pretrained(folder, **options)
    return exact, Pair(ours.eval(), theirs.eval())


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.3) -> None:
    """Draw all weights of a model; the same for the same seed and names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean, width = (1.0, 0.2) if "norm" in name else (0.0, std)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * width + mean)


def random_ids(*shape: int, seed: int = 1, vocabulary: int = 99) -> Tensor:
    return torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def padding_mask(rows: int, length: int, side: str | None) -> Tensor | None:
    """1 for real tokens: the first row is whole, later rows lose 3 more tokens each on ``side``."""
    if side is None:
        return None
    column = torch.arange(length)
    missing = 3 * torch.arange(rows)[:, None]
    return (column >= missing if side == "left" else column < length - missing).long()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a fraction of the largest value; infinite where either is not finite."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)} is not {list(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    difference = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    return difference / (scale or 1.0)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert relative_error(ours, theirs) <= tolerance
