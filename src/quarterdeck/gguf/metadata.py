"""A model's configuration in the metadata of a GGUF file of architecture ``command-r``, read and written.

Everything that llama.cpp needs stands under its own keys. What has no key there, and numbers that 32 bits cut off,
stand beside them as the JSON text ``quarterdeck.config``, so that a file of our own gives back the configuration it was
made from. Where the two disagree, as after somebody edited the file, the common keys count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from quarterdeck.errors import CheckpointCorruptError, ConfigError, InputError
from quarterdeck.gguf.container import GGUFFile, Value

ARCHITECTURE = "command-r"
MODEL_TYPE = "cohere"
OWN_CONFIG = "quarterdeck.config"
OWN_GENERATION_CONFIG = "quarterdeck.generation_config"

_SIZES: Mapping[str, str] = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "logit_scale": "logit_scale",
}
_TOKENS: Mapping[str, str] = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LAYERS_WITH_NORMS = 64  # from here on llama.cpp expects norms of queries and keys
_QUANTIZED_DTYPE = "bfloat16"  # has the range of float32, and more bits than the blocks
# what the file says better than the text beside it
_NOT_OWN = frozenset({"model_type", "dtype", "quantization_config", "vocab_size", "tie_word_embeddings"})


def config_values(file: GGUFFile) -> dict[str, Any]:
    """What config.json would hold.

    Raises:
        ConfigError: another architecture.
        CheckpointCorruptError: a key is missing.
    """
    check_architecture(file)
    values: dict[str, Any] = {field: _needed(file, key) for field, key in _SIZES.items()}
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = _one(file, "attention.head_count_kv", heads)
    values["rope_theta"] = _one(file, "rope.freq_base", 10000.0)
    values["rope_scaling"] = _rope_scaling(file)
    values |= {field: file.metadata.get(key) for field, key in _TOKENS.items()}
    width = _one(file, "attention.key_length", None)
    if width is not None and width * heads != values["hidden_size"]:
        values["head_dim"] = width
    values["vocab_size"] = _vocabulary_size(file)
    values["use_qk_norm"] = "blk.0.attn_q_norm.weight" in file.tensors
    values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["dtype"] = _dtype(file)
    return _with_own(values, _own(file))


def check_architecture(file: GGUFFile) -> None:
    """ConfigError unless the file holds a model of the architecture that this package runs."""
    if file.architecture != ARCHITECTURE:
        raise ConfigError(
            f"{file.path} holds a model of architecture {file.architecture!r}; Quarterdeck runs {ARCHITECTURE!r} "
            "(Command-R, Command-R+, Aya 23, Aya Expanse)"
        )


def generation_values(file: GGUFFile) -> dict[str, Any] | None:
    """What generation_config.json would hold; None if the file does not say."""
    return read_text_of(file, OWN_GENERATION_CONFIG)


def read_text_of(file: GGUFFile, key: str) -> dict[str, Any] | None:
    """The object in a metadata text of JSON; None if there is no such key.

    Raises:
        CheckpointCorruptError: it is no JSON object.
    """
    text = file.metadata.get(key)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise CheckpointCorruptError(f"{file.path}: the metadata {key} are not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointCorruptError(f"{file.path}: the metadata {key} are a {type(found).__name__}, not an object")
    return found


def config_metadata(config: Mapping[str, Any], *, context_length: int, head_dim: int) -> dict[str, Value]:
    """The keys for a configuration.

    Args:
        config: what config.json holds.
        context_length, head_dim: as the configuration derives them.

    Raises:
        InputError: something that no such file can say, or that llama.cpp has no code for.
    """
    _check_expressible(config, head_dim)
    found: dict[str, Value] = {}
    for field, key in _SIZES.items():
        found[f"{ARCHITECTURE}.{key}"] = config[field]
    for key in ("attention.layer_norm_epsilon", "logit_scale"):
        found[f"{ARCHITECTURE}.{key}"] = float(config[{"logit_scale": "logit_scale"}.get(key, "layer_norm_eps")])
    found[f"{ARCHITECTURE}.context_length"] = context_length
    found[f"{ARCHITECTURE}.vocab_size"] = config["vocab_size"]
    found[f"{ARCHITECTURE}.attention.head_count_kv"] = config["num_key_value_heads"]
    found[f"{ARCHITECTURE}.rope.freq_base"] = float(config["rope_theta"])
    found[f"{ARCHITECTURE}.rope.dimension_count"] = head_dim
    found |= _rope_metadata(config.get("rope_scaling"))
    own = {field: value for field, value in config.items() if field not in _NOT_OWN}
    found[OWN_CONFIG] = json.dumps(own, sort_keys=True, ensure_ascii=False)
    return found


def _check_expressible(config: Mapping[str, Any], head_dim: int) -> None:
    layers, normed = config["num_hidden_layers"], config.get("use_qk_norm", False)
    kind = (config.get("rope_scaling") or {}).get("rope_type", "default")
    reasons = {
        "attention_bias=True": config.get("attention_bias", False),
        "tie_word_embeddings=False": not config.get("tie_word_embeddings", True),
        f"hidden_act={config.get('hidden_act')!r}": config.get("hidden_act", "silu") not in ("silu", "swish"),
        f"rope_scaling of type {kind!r}": kind not in ("default", "linear", "yarn"),
        f"head_dim={head_dim}": head_dim * config["num_attention_heads"] != config["hidden_size"],
        # llama.cpp takes Command-R+ for the one with norms by its number of layers
        f"use_qk_norm={normed} in {layers} layers": normed != (layers >= _LAYERS_WITH_NORMS),
    }
    if wrong := [text for text, applies in reasons.items() if applies]:
        raise InputError(
            f"the model has {', '.join(wrong)}, which a GGUF file of architecture {ARCHITECTURE!r} cannot say or "
            "llama.cpp cannot run: keep it as safetensors"
        )


def _rope_metadata(scaling: Mapping[str, Any] | None) -> dict[str, Value]:
    prefix = f"{ARCHITECTURE}.rope.scaling"
    if scaling is None or scaling["rope_type"] == "default":
        return {f"{prefix}.type": "none"}
    found: dict[str, Value] = {f"{prefix}.type": scaling["rope_type"], f"{prefix}.factor": float(scaling["factor"])}
    if (original := scaling.get("original_max_position_embeddings")) is not None:
        found[f"{prefix}.original_context_length"] = original
    return found


def _rope_scaling(file: GGUFFile) -> dict[str, Any] | None:
    kind = _one(file, "rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"{file.path}: rope.scaling.type is {kind!r}, but must be one of none, linear, yarn")
    found = {"rope_type": kind, "factor": _needed(file, "rope.scaling.factor")}
    if (original := _one(file, "rope.scaling.original_context_length", None)) is not None:
        found["original_max_position_embeddings"] = original
    return found


def _needed(file: GGUFFile, key: str) -> Any:
    found = _one(file, key, None)
    if found is None:
        raise CheckpointCorruptError(f"{file.path} lacks the metadata {ARCHITECTURE}.{key}; use another conversion")
    return found


def _one(file: GGUFFile, key: str, default: Any) -> Any:
    """A key of the architecture; a list with a number for each layer must have the same for all."""
    found = file.metadata.get(f"{ARCHITECTURE}.{key}", default)
    if isinstance(found, list):
        if len(set(found)) != 1:
            raise ConfigError(f"{file.path}: {ARCHITECTURE}.{key} differs from layer to layer: {found}")
        found = found[0]
    # the shortest number that rounds to the same 32 bits: 1e-05, not 9.999999747378752e-06
    return float(str(np.float32(found))) if isinstance(found, float) else found


def _vocabulary_size(file: GGUFFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is not None:
        return table.shape[0]
    size = file.metadata.get(f"{ARCHITECTURE}.vocab_size", len(file.metadata.get("tokenizer.ggml.tokens", ())))
    return int(size)


def _dtype(file: GGUFFile) -> str:
    """The most frequent plain type of the matrices, or one that is good for quantized ones."""
    kinds = Counter(entry.kind.name for entry in file.tensors.values() if not entry.name.endswith("_norm.weight"))
    plain = [name for name, _ in kinds.most_common() if name in _DTYPES]
    return _DTYPES[plain[0]] if plain else _QUANTIZED_DTYPE


def _own(file: GGUFFile) -> dict[str, Any]:
    found = read_text_of(file, OWN_CONFIG) or {}
    return {field: value for field, value in found.items() if field not in _NOT_OWN}


def _with_own(values: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The common values, with those of our own that say the same more exactly or say something else."""
    longest = max(own.get("max_position_embeddings", 0), own.get("model_max_length") or 0)
    taken = dict(own)
    for field in set(own) & set(values):
        common, exact = values[field], own[field]
        if field == "max_position_embeddings":
            agrees = common in (longest, exact)
        elif isinstance(common, float):
            agrees = np.float32(common) == np.float32(exact)
        elif field == "rope_scaling":
            agrees = (common or {}).get("rope_type") == (exact or {"rope_type": None}).get("rope_type")
        else:
            agrees = common == exact or (isinstance(exact, list) and common in exact)
        if not agrees:
            del taken[field]
    if "max_position_embeddings" not in taken:
        taken.pop("model_max_length", None)
    return values | taken
