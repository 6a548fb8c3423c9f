"""Steps of decoding on the CPU with the native kernels and without: tokens per second, and GB/s of weights and cache.

    python benchmarks/native_decode.py [--hidden 2048] [--layers 11] [--steps 8] [--only weights|cache]

The model is random, of Cohere's shape, 1.5 GB in bfloat16 in the default size, which is more
than any cache of a processor holds. Both sides of a comparison are measured in turn, step by step, in one process,
so that a machine that is doing other things disturbs both; the best step is reported, and the median in brackets. For
the quantized cache the model is a narrow one with many positions, so that the cache is what is read.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from quarterdeck import CohereConfig, CohereForCausalLM, DynamicCache, QuantizationConfig, QuantizedCache
from quarterdeck.cache import Cache, quantized
from quarterdeck.kernels import native
from quarterdeck.kernels.linears import use_native_linears
from quarterdeck.quantization.surgery import quantize_model


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure decoding with and without the native kernels.")
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size; feed-forward blocks are 4 times as wide")
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each kind")
    parser.add_argument("--positions", type=int, default=8192, help="stored positions for the cache")
    parser.add_argument("--only", choices=("weights", "cache"))
    return parser.parse_args()


def random_model(hidden: int, layers: int, vocabulary: int, heads: int, groups: int) -> CohereForCausalLM:
    """In bfloat16, with heads of 128 channels; made in that type, so that no float32 copy is ever there."""
    config = CohereConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, vocab_size=vocabulary,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=2**17, head_dim=128,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return CohereForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def stepper(model: CohereForCausalLM, cache: Cache) -> Callable[[], Any]:
    """One step of decoding behind what the cache holds, taken back afterwards."""
    ids = torch.ones(1, 1, dtype=torch.long)

    def step() -> None:
        model(ids, past_key_values=cache)
        cache.crop(-1)

    return step


def in_turn(kinds: dict[str, Callable[[], Any]], steps: int) -> dict[str, list[float]]:
    """Seconds of each step of each kind, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(steps + 1):
        for name, step in kinds.items():
            begin = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def report(seconds: dict[str, list[float]], sizes: dict[str, int]) -> None:
    for name, each in seconds.items():
        best, median = min(each), statistics.median(each)
        print(
            f"{name:34} {1 / best:7.2f} ({1 / median:6.2f}) steps/s  {best * 1e3:8.1f} ms  "
            f"{sizes[name] / best / 1e9:6.1f} ({sizes[name] / median / 1e9:5.1f}) GB/s of {sizes[name] / 1e9:.2f} GB",
            flush=True,
        )


def weight_bytes(model: torch.nn.Module) -> int:
    """What a step reads: all weights, those of a tied head once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def read_back(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step without attention in place; all else as it is."""
    return mock.patch.object(quantized, "_reads_in_place", return_value=False)(lambda _: step())


def bench_weights(options: argparse.Namespace) -> None:
    heads = options.hidden // 128
    plain = random_model(options.hidden, options.layers, options.vocabulary, heads, max(heads // 4, 1))
    ours = copy.deepcopy(plain)
    print(f"{sum(weight.numel() for weight in plain.parameters()) / 1e6:.0f} million weights")
    use_native_linears(ours)
    models: dict[str, CohereForCausalLM] = {"bf16 by PyTorch": plain, "bf16 by the kernels": ours}
    for weights in ("int8", "int4"):
        models[weights] = copy.deepcopy(plain)
        quantize_model(models[weights], QuantizationConfig(weights))
    kinds = {}
    for name, model in models.items():
        cache = DynamicCache()
        model(torch.ones(1, 16, dtype=torch.long), past_key_values=cache)
        kinds[name] = stepper(model, cache)
    report(in_turn(kinds, options.steps), {name: weight_bytes(model) for name, model in models.items()})


def bench_cache(options: argparse.Namespace) -> None:
    model = random_model(256, 4, 256, 32, 8)
    use_native_linears(model)
    kinds: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    caches: dict[str, Cache] = {"exact": DynamicCache(), **{f"{n} bits": QuantizedCache(nbits=n) for n in (8, 4)}}
    for name, cache in caches.items():
        for index in range(4):
            cache.update(*torch.randn(2, 1, 8, options.positions, 128).bfloat16(), index)
        step = stepper(model, cache)
        kinds[f"{name} cache"], sizes[f"{name} cache"] = step, cache.nbytes
        if name != "exact":
            kinds[f"{name} cache, read back"] = read_back(step)
            sizes[f"{name} cache, read back"] = cache.nbytes
    print(f"4 layers, 32 heads of 128 on 8, {options.positions} positions")
    report(in_turn(kinds, options.steps), sizes)


@torch.inference_mode()
def main() -> None:
    options = arguments()
    print(f"native kernels: {native.describe()}; {torch.get_num_threads()} threads")
    if options.only != "cache":
        bench_weights(options)
    if options.only != "weights":
        bench_cache(options)


if __name__ == "__main__":
    main()
