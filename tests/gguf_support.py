"""GGUF files for the tests: made by this package from tiny checkpoints, or by the `gguf` package from any bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from quarterdeck import CohereConfig
from quarterdeck.gguf.container import TYPES
from quarterdeck.gguf.names import to_gguf
from quarterdeck.weights.convert import open_checkpoint, to_gguf_file

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 5,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "logit_scale": 0.0625,
}
# where half floats stand in a block of each type
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def made(checkpoint: Path | str, path: Path, kind: str | None = None) -> Path:
    """A checkpoint as a GGUF file."""
    to_gguf_file(open_checkpoint(checkpoint), path, kind)
    return path


def random_raw(name: str, rows: int, columns: int, seed: int = 5, scale: float = 1.0) -> torch.Tensor:
    """Raw rows with any bits at all, but scales that are finite."""
    kind = TYPES[name]
    generator = torch.Generator().manual_seed(seed)
    blocks = rows * columns // kind.block
    raw = torch.randint(0, 256, (blocks, kind.nbytes), dtype=torch.uint8, generator=generator)
    for place in HALVES[name]:
        numbers = torch.randn(blocks, 1, generator=generator) * scale
        raw[:, place : place + 2] = numbers.half().view(torch.uint8)
    return raw.view(rows, -1)


def foreign_file(path: Path, kinds: dict[str, str], **changes: Any) -> dict[str, np.ndarray]:
    """A file with only the common keys, written by the `gguf` package; returns the numbers it holds by our names.

    Args:
        path: the file.
        kinds: the type of a matrix by the last part of its module's name; others are F32.
        changes: of `SHAPE`.
    """
    import gguf

    config = CohereConfig(**(SHAPE | changes))
    writer = gguf.GGUFWriter(path, "command-r")
    writer.add_context_length(8192)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_logit_scale(config.logit_scale)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_bos_token_id(5)
    writer.add_eos_token_id(7)
    writer.add_pad_token_id(0)
    values = {}
    for seed, (name, shape) in enumerate(_shapes(config).items()):
        module = name.removesuffix(".weight").rpartition(".")[2]
        short = to_gguf(name)
        assert short is not None
        if len(shape) == 2 and module in kinds:
            kind = gguf.GGMLQuantizationType[kinds[module]]
            raw = random_raw(kinds[module], *shape, seed=seed, scale=1e-3).numpy()
            writer.add_tensor(short, raw, raw_dtype=kind)
            values[name] = gguf.quants.dequantize(raw, kind)
        else:
            values[name] = np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)
            writer.add_tensor(short, values[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _shapes(config: CohereConfig) -> dict[str, tuple[int, ...]]:
    from quarterdeck import CohereForCausalLM

    with torch.device("meta"):
        model = CohereForCausalLM(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}
