"""Batches for the tests of the trainer; without torch, so that worker processes start quickly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quarterdeck.training.packing import PackedRows, pack

BOS, LENGTH = 1, 18


def rows_of(step: int, progress: float) -> PackedRows:
    """Documents in which every token is followed by its successor, so that there is something to learn."""
    rng = np.random.default_rng([step, round(progress * 1000)])
    documents = []
    for _ in range(40):
        start = int(rng.integers(3, 12))
        ids = np.array([BOS, *range(start, start + int(rng.integers(4, 14))), 2], dtype=np.uint16)
        documents.append((ids, np.arange(len(ids)) > 1))
    return pack(documents, rows=4, length=LENGTH)


def build_rows() -> Callable[[int, float], PackedRows]:
    """What a worker builds."""
    return rows_of
