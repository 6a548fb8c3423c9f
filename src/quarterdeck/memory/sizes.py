"""The arithmetic of memory: bytes of weights, of keys and values, and of what a run of the model takes besides.

Shapes: ``B`` sequences, ``T`` positions of a run, ``S`` positions stored, ``E`` width, ``F`` width of the feed-forward
block, ``H`` query heads, ``G`` key-value heads, ``D`` head width, ``V`` words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from quarterdeck.cache.groups import equal_groups
from quarterdeck.cache.quantized import QuantizedCache
from quarterdeck.config import CohereConfig
from quarterdeck.kernels.rows import padded_columns
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
from quarterdeck.quantization.choose import Quantization
from quarterdeck.quantization.config import QuantizationConfig
from quarterdeck.quantization.formats import format_of
from quarterdeck.quantization.surgery import skipped

CacheKind = Literal["dynamic", "static", "int8", "int4"]

HEAP_LIMIT = 2**25
"""Smaller pieces of host memory stay with the C library's heap when they are freed (glibc's M_MMAP_THRESHOLD grows up
to this), and pieces of other sizes seldom fit into the holes: they are counted twice."""

_FIXED = 16 * 2**20
"""What libraries for matrix products keep for themselves."""

_READ_BACK = 1024
"""Positions that a quantized cache reads back at a time, in float32."""


@dataclass(frozen=True)
class Matrix:
    """A weight ``[rows, columns]`` of a model, and the number of elements of its bias."""

    name: str
    rows: int
    columns: int
    bias: int = 0


def matrices(config: CohereConfig) -> Iterator[Matrix]:
    """All linears and embeddings of a causal language model; a tied head is not one."""
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    yield Matrix("model.embed_tokens", config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        path = f"model.layers.{layer}"
        for name, rows, columns in (
            ("q_proj", queries, width),
            ("k_proj", keys, width),
            ("v_proj", keys, width),
            ("o_proj", width, queries),
        ):
            yield Matrix(f"{path}.self_attn.{name}", rows, columns, rows if config.attention_bias else 0)
        yield Matrix(f"{path}.mlp.gate_proj", inner, width)
        yield Matrix(f"{path}.mlp.up_proj", inner, width)
        yield Matrix(f"{path}.mlp.down_proj", width, inner)
    if not config.tie_word_embeddings:
        yield Matrix("lm_head", config.vocab_size, width)


def weight_bytes(config: CohereConfig, dtype: torch.dtype, quantization: Quantization | None) -> int:
    """Bytes of all weights."""
    norms = config.hidden_size * (config.num_hidden_layers + 1)
    if config.use_qk_norm:
        heads = config.num_attention_heads + config.num_key_value_heads
        norms += config.num_hidden_layers * heads * config.head_dim
    return norms * dtype.itemsize + sum(matrix_bytes(one, dtype, quantization) for one in matrices(config))


def matrix_bytes(matrix: Matrix, dtype: torch.dtype, quantization: Quantization | None) -> int:
    """Bytes of a weight and its bias."""
    bias, count = matrix.bias * dtype.itemsize, matrix.rows * matrix.columns
    if isinstance(quantization, QuantizationConfig) and _is_packed(matrix.name, quantization):
        tensors = format_of(quantization, matrix.name).tensors(matrix.rows, matrix.columns).values()
        return bias + sum(prod(shape) * kind.itemsize for shape, kind in tensors)
    if isinstance(quantization, BitsAndBytesConfig) and _is_in_bitsandbytes(matrix.name, quantization):
        if quantization.load_in_8bit:
            return bias + (2 * count if quantization.llm_int8_has_fp16_weight else count + 4 * matrix.rows)
        return bias + count // 2 + count // 64 * (1 if quantization.bnb_4bit_use_double_quant else 4)
    return bias + count * dtype.itemsize


def _is_packed(name: str, quantization: QuantizationConfig) -> bool:
    wanted = {"model.embed_tokens": quantization.embeddings, "lm_head": quantization.head}
    return wanted.get(name, True) and not skipped(name, quantization.modules_to_not_convert)


def _is_in_bitsandbytes(name: str, quantization: BitsAndBytesConfig) -> bool:
    left = quantization.llm_int8_skip_modules
    return name != "model.embed_tokens" and not skipped(name, ["lm_head"] if left is None else left)


def cache_bytes(config: CohereConfig, kind: CacheKind, dtype: torch.dtype, *, length: int, batch: int) -> int:
    """Bytes of keys and values of ``length`` positions in all layers."""
    heads = batch * config.num_hidden_layers * config.num_key_value_heads
    width = config.head_dim
    if kind in ("dynamic", "static"):
        return 2 * heads * length * width * dtype.itemsize
    storage = QuantizedCache(nbits=8 if kind == "int8" else 4).storage
    block = storage.q_group_size
    past = max(0, length - storage.residual_length) // block * block
    recent = 2 * (storage.residual_length + block) * width * dtype.itemsize
    codes = 2 * past * width * storage.nbits // 8
    key_groups, value_groups = past // block * width, past * (width // equal_groups(width, block))
    return heads * (recent + codes + 4 * (key_groups + value_groups))  # a scale and a minimum of 2 bytes each


def workspace_bytes(
    config: CohereConfig,
    kind: CacheKind,
    dtype: torch.dtype,
    quantization: Quantization | None,
    *,
    length: int,
    chunk: int,
    batch: int,
    on_host: bool,
) -> int:
    """Most bytes that runs of the model take besides weights and cache, the prompt being read ``chunk`` at a time."""
    rows = batch * min(chunk, length)
    attention = _attention_pieces(config, kind, dtype, rows=rows, length=length, batch=batch)
    feed_forward = _feed_forward_pieces(config, dtype, quantization, rows=rows)
    logits = 3 * batch * config.vocab_size * 4
    grown = _growth_pieces(config, kind, dtype, length=length, chunk=chunk, batch=batch)
    phases = (_held(pieces, on_host=on_host) for pieces in (attention, feed_forward, grown))
    return max(phases) + logits + _FIXED


def _held(pieces: list[int], *, on_host: bool) -> int:
    """Bytes that pieces hold, with what the heap keeps of them."""
    return sum(2 * piece if on_host and piece < HEAP_LIMIT else piece for piece in pieces)


def _feed_forward_pieces(
    config: CohereConfig, dtype: torch.dtype, quantization: Quantization | None, *, rows: int
) -> list[int]:
    """The stream, its norm and what attention gave; both products and their own; activations in 8 bits."""
    width, inner = config.hidden_size, config.intermediate_size
    rounded = rows * padded_columns(inner) if isinstance(quantization, QuantizationConfig) else 0
    return [rows * width * dtype.itemsize] * 3 + [rows * inner * dtype.itemsize] * 3 + [rounded]


def _attention_pieces(
    config: CohereConfig, kind: CacheKind, dtype: torch.dtype, *, rows: int, length: int, batch: int
) -> list[int]:
    """The stream and its norm; queries and both results, and their merge in float32; new keys and values; a mask where
    rows may be padded; and of a quantized cache one layer as it is read back.
    """
    size = dtype.itemsize
    queries = rows * config.num_attention_heads * config.head_dim
    heads = config.num_key_value_heads * config.head_dim
    pieces = [rows * config.hidden_size * size] * 2 + [queries * size] * 3 + [queries * 4] * 2
    pieces += [rows * heads * size] * 2
    if batch > 1:
        pieces += [rows * length * (1 + size)]
    if kind in ("int8", "int4"):
        pieces += [batch * heads * length * size] * 2 + [batch * heads * min(length, _READ_BACK) * 4] * 3
    return pieces


def _growth_pieces(
    config: CohereConfig, kind: CacheKind, dtype: torch.dtype, *, length: int, chunk: int, batch: int
) -> list[int]:
    """Of a cache that grows, keys and values of one layer are there twice for a moment; a prompt read at once is not
    copied.
    """
    if kind != "dynamic" or length <= chunk:
        return []
    return [batch * config.num_key_value_heads * config.head_dim * length * dtype.itemsize] * 2
