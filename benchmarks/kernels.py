"""The native kernels beside what the machine can do: GB/s where memory is the limit, GOP/s where arithmetic is.

    python benchmarks/kernels.py [--rows 1,4,16,256] [--shape 8192x8192] [--levels amx,avx512] [--seconds 0.3]

Weights are taken in turn from copies that together are larger than any cache. Each figure is the best of many short
runs (and the median in brackets): on a machine that is doing other things as well, the best is the one that was
disturbed least. Reading is held against summing a large tensor; products of many rows against PyTorch's bf16 product,
which uses AMX through oneDNN where there is AMX. Weights in 4 bits count 4.5 bits, scales included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from quarterdeck.cache import groups
from quarterdeck.kernels import attention, dense, int4, int8, native

LARGER_THAN_CACHES = 300 * 2**20  # bytes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the native kernels.")
    parser.add_argument("--rows", default="1,4,16,256", help="rows of activations")
    parser.add_argument("--shape", default="8192x8192", help="rows and columns of the weight")
    parser.add_argument("--levels", help="instruction sets; the best one if not given")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    parser.add_argument("--positions", type=int, default=8192, help="stored positions for attention")
    return parser.parse_args()


def times(work: Callable[[], Any], limit: float) -> tuple[float, float]:
    """Best and median seconds of one call."""
    work()
    measured: list[float] = []
    end = time.perf_counter() + limit
    while len(measured) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        measured.append(time.perf_counter() - begin)
    return min(measured), statistics.median(measured)


def in_turn(items: Sequence[Any], work: Callable[[Any], Any]) -> Callable[[], Any]:
    """A call that takes the next item each time."""
    state = [0]

    def call() -> Any:
        state[0] = (state[0] + 1) % len(items)
        return work(items[state[0]])

    return call


def report(name: str, limit: float, work: Callable[[], Any], size: float, operations: float) -> None:
    best, median = times(work, limit)
    print(
        f"{name:38} {best * 1e6:9.0f} us  {size / best / 1e9:6.1f} ({size / median / 1e9:5.1f}) GB/s"
        f"  {operations / best / 1e9:7.0f} ({operations / median / 1e9:6.0f}) GOP/s",
        flush=True,
    )


def copies(size: float) -> range:
    return range(max(2, -(-LARGER_THAN_CACHES // int(size))))


def random_int8(n: int, k: int) -> int8.Int8Weight:
    values = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return int8.pack(values, torch.rand(n))


def random_int4(n: int, k: int, symmetric: bool) -> int4.Int4Weight:
    group = 32 if symmetric else 64
    scales = torch.rand(n, k // group).half()
    return int4.pack(torch.randint(0, 16, (n, k), dtype=torch.uint8), scales, None if symmetric else -scales)


def bench_products(options: argparse.Namespace, n: int, k: int, levels: Sequence[str]) -> None:
    eights = [random_int8(n, k) for _ in copies(n * k)]
    fours = {symmetric: [random_int4(n, k, symmetric) for _ in copies(n * k * 0.5625)] for symmetric in (True, False)}
    for rows in (int(text) for text in options.rows.split(",")):
        x, work = torch.randn(rows, k), 2.0 * rows * n * k
        for level in levels:
            head = f"{level} {rows} rows"
            run = in_turn(eights, lambda w, x=x, level=level: int8.linear(x, w, level=level))
            report(f"{head}, int8", options.seconds, run, n * k, work)
            for symmetric, weights in fours.items():
                run = in_turn(weights, lambda w, x=x, level=level: int4.linear(x, w, level=level))
                name = f"{head}, int4 {'symmetric' if symmetric else 'asymmetric'}"
                report(name, options.seconds, run, n * k * 0.5625, work)
    del eights, fours
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights = [torch.randn(n, k, dtype=dtype) for _ in copies(n * k * dtype.itemsize)]
        for rows in (int(text) for text in options.rows.split(",")):
            x, size, work = torch.randn(rows, k).to(dtype), n * k * dtype.itemsize, 2.0 * rows * n * k
            name = f"{rows} rows, {str(dtype).removeprefix('torch.')}"
            report(f"{name}", options.seconds, in_turn(weights, lambda w, x=x: dense.linear(x, w)), size, work)
            report(f"{name} in PyTorch", options.seconds, in_turn(weights, lambda w, x=x: linear(x, w)), size, work)


def bench_attention(options: argparse.Namespace) -> None:
    length = options.positions // 64 * 64
    for heads, shared in ((32, 8), (64, 64)):
        key, value = torch.randn(2, 1, shared, length, 128, dtype=torch.bfloat16)
        query = torch.randn(1, heads, 1, 128, dtype=torch.bfloat16)
        work, name = 4.0 * heads * length * 128, f"attention {heads}/{shared} heads, {length}"
        grouped = query.view(1, shared, -1, 128)
        run: Callable[[], Any] = lambda: attention.decode(query, [(key, value)], scale=0.1)  # noqa: B023, E731
        report(f"{name}, bfloat16", options.seconds, run, key.numel() * 4, work)
        run = lambda: scaled_dot_product_attention(grouped, key, value, scale=0.1)  # noqa: B023, E731
        report(f"{name}, in PyTorch", options.seconds, run, key.numel() * 4, work)
        for bits in (8, 4):
            stored = [as_codes(x, bits, tokens, 65 - tokens) for x, tokens in ((key, 64), (value, 1))]
            run = lambda: attention.decode(query, [(stored[0], stored[1])], scale=0.1)  # noqa: B023, E731
            report(f"{name}, {bits} bits", options.seconds, run, key.numel() * 2 * (bits + 0.5) / 8, work)


def as_codes(x: torch.Tensor, bits: int, tokens: int, channels: int) -> attention.Codes:
    packed = groups.pack(x, groups.Grouping(bits, tokens, channels))
    return attention.Codes(*packed.tensors, bits, tokens, channels)


def main() -> None:
    options = arguments()
    levels = options.levels.split(",") if options.levels else native.levels()[-1:] or ("reference",)
    print(f"native kernels: {native.describe()}; {torch.get_num_threads()} threads")
    numbers = torch.ones(64 * 2**20)
    report("reading (sum of float32)", options.seconds, numbers.sum, numbers.numel() * 4, numbers.numel())
    a, b = torch.randn(512, 4096, dtype=torch.bfloat16), torch.randn(4096, 4096, dtype=torch.bfloat16)
    report(
        "bf16 512 x 4096 x 4096 in PyTorch", options.seconds, lambda: linear(a, b), b.numel() * 2, 2.0 * 512 * 4096**2
    )
    n, k = (int(text) for text in options.shape.split("x"))
    bench_products(options, n, k, levels)
    bench_attention(options)


if __name__ == "__main__":
    main()
