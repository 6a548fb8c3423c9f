"""What this machine can do: the limits that figures are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median time of one call, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def read_bandwidth() -> float:
    """GB/s at which 1 GB of float32 is summed by all threads."""
    data = torch.ones(256 * 2**20)
    return data.numel() * 4 / seconds(data.sum) / 1e9


def gemm_rate() -> float:
    """GFLOP/s of a 2048-cubed float32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: a @ b) / 1e9
