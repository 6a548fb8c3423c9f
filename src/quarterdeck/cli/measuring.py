"""What ``quarterdeck bench`` measures: a model's speed, and the limits of the machine that it is held against."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarterdeck.kernels import int8, native
from quarterdeck.memory.sizes import CacheKind, cache_bytes
from quarterdeck.model import CohereForCausalLM

CACHE_OPTIONS: Mapping[CacheKind, Mapping[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "int8": {"cache_implementation": "quantized", "cache_config": {"nbits": 8}},
    "int4": {"cache_implementation": "quantized", "cache_config": {"nbits": 4}},
}
"""How generation is asked for each kind of cache."""


@dataclass(frozen=True)
class Limits:
    """What a machine can do.

    Attributes:
        read: GB/s at which a large tensor is summed.
        float32, bfloat16: GFLOP/s of a square matrix product in PyTorch.
        int8: GOP/s of this package's product of 8-bit weights with many rows; None without native kernels.
    """

    read: float
    float32: float
    bfloat16: float
    int8: float | None


@dataclass(frozen=True)
class Speed:
    """What a model does with a prompt length and a number of sequences; medians.

    Attributes:
        batch, prompt, new: sequences, tokens of each prompt, tokens decoded for each.
        prefill_seconds: time to the first token.
        prefill_tokens: tokens of all prompts per second.
        prefill_gops: 10^9 multiplications and additions per second in matrix products and attention.
        step_seconds: time of a step of decoding.
        decode_tokens: new tokens of all sequences per second.
        decode_gbs: GB/s of weights, keys and values that steps read.
    """

    batch: int
    prompt: int
    new: int
    prefill_seconds: float
    prefill_tokens: float
    prefill_gops: float
    step_seconds: float
    decode_tokens: float
    decode_gbs: float


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of one call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        wait_for(device)
        begin = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done all that it was told."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def measure_limits(device: torch.device) -> Limits:
    """The limits of a device, in about two seconds."""
    size, side = (2**26, 1024) if device.type == "cpu" else (2**29, 8192)
    data = torch.ones(size, device=device)
    read = 4 * size / seconds(data.sum, device) / 1e9
    del data
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates.append(2 * side**3 / seconds(lambda one=one, other=other: one @ other, device) / 1e9)  # type: ignore[misc]  # mypy cannot infer such lambdas
    return Limits(read, rates[0], rates[1], _int8_rate() if device.type == "cpu" and native.levels() else None)


def _int8_rate() -> float:
    rows, side = 256, 2048
    weight = int8.pack(*int8.quantize(torch.randn(side, side)))
    x = torch.randn(rows, side)
    return 2 * rows * side**2 / seconds(lambda: int8.linear(x, weight), x.device) / 1e9


@torch.no_grad()
def measure_speed(
    model: CohereForCausalLM, *, batch: int, prompt: int, new: int, repeats: int, kv_cache: CacheKind = "dynamic"
) -> Speed:
    """Prompts of random tokens are read and ``new`` tokens decoded, ``repeats`` times after a run of few tokens."""
    device, vocabulary = model.device, model.config.vocab_size
    ids = torch.randint(0, vocabulary, (batch, prompt), device=device)
    _run(model, ids[:, :8], 2, kv_cache)
    runs = [_run(model, ids, new, kv_cache) for _ in range(repeats)]
    prefill = statistics.median(marks[0] for marks in runs)
    step = statistics.median(after - before for marks in runs for before, after in itertools.pairwise(marks))
    return Speed(
        batch=batch,
        prompt=prompt,
        new=new,
        prefill_seconds=prefill,
        prefill_tokens=batch * prompt / prefill,
        prefill_gops=prefill_operations(model, batch, prompt) / prefill / 1e9,
        step_seconds=step,
        decode_tokens=batch / step,
        decode_gbs=step_bytes(model, batch, prompt + new // 2, kv_cache) / step / 1e9,
    )


def _run(model: CohereForCausalLM, ids: Tensor, new: int, kv_cache: CacheKind) -> list[float]:
    """Seconds after the start at which each of ``new + 1`` tokens was there."""
    options: dict[str, Any] = {"max_new_tokens": new + 1, "do_sample": False, "eos_token_id": None}
    options |= CACHE_OPTIONS[kv_cache]
    wait_for(ids.device)
    begin = time.perf_counter()
    marks = []
    for _ in model.generate_steps(ids, use_model_defaults=False, **options):
        wait_for(ids.device)
        marks.append(time.perf_counter() - begin)
    return marks


def prefill_operations(model: CohereForCausalLM, batch: int, prompt: int) -> float:
    """Multiplications and additions of reading prompts: all linears but the head, and the lower half of attention."""
    config = model.config
    body = model.num_parameters(exclude_embeddings=True)
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * prompt
    return 2.0 * batch * prompt * (body + attention / 2)


def step_bytes(model: CohereForCausalLM, batch: int, length: int, kv_cache: CacheKind = "dynamic") -> int:
    """Bytes that a step of decoding reads behind ``length`` tokens: each weight once, and all keys and values."""
    table = model.get_input_embeddings()
    unread = 0
    if not model.config.tie_word_embeddings:
        unread = sum(tensor.nbytes for tensor in itertools.chain(table.parameters(), table.buffers()))
    stored = cache_bytes(model.config, kv_cache, model.dtype, length=length, batch=batch)
    return model.get_memory_footprint() - unread + stored
