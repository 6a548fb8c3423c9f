"""Token files and the mixture that batches are drawn from.

A token file is a flat array of little-endian uint16 ids, documents one after another. A stream cuts it into blocks
of ``length`` tokens and hands them out in a new random order each epoch; a mixture draws every row of a batch from
one of several streams, with shares that move from a first to a last value as training proceeds. Both give the same
rows for the same seed, and both can be stopped and continued exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quarterdeck.errors import InputError


class TokenStream:
    """The blocks of one token file, endlessly: a fresh permutation and a fresh offset each epoch."""

    def __init__(self, path: Path, length: int, seed: int) -> None:
        self.tokens: NDArray[np.uint16] = np.memmap(path, dtype="<u2", mode="r")
        self.length, self.seed, self.epoch, self.cursor = length, seed, 0, 0
        if len(self.tokens) < 2 * length:
            raise InputError(
                f"{path} holds {len(self.tokens)} tokens; a stream of blocks of {length} needs at least "
                f"{2 * length}. Prepare more text or choose shorter blocks."
            )
        self._start_epoch()

    def _start_epoch(self) -> None:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.offset = int(rng.integers(self.length))
        self.order = rng.permutation((len(self.tokens) - self.offset) // self.length)

    def next(self) -> NDArray[np.uint16]:
        """The next block, ``[length]``."""
        if self.cursor == len(self.order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self._start_epoch()
        start = self.offset + int(self.order[self.cursor]) * self.length
        self.cursor += 1
        return self.tokens[start : start + self.length]

    def state(self) -> dict[str, int]:
        """Where the stream stands."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken."""
        self.epoch = state["epoch"]
        self._start_epoch()
        self.cursor = state["cursor"]


class Mixture:
    """Rows drawn from several streams; shares go linearly from `first` to `last` with progress in 0..1."""

    def __init__(
        self, streams: Mapping[str, TokenStream], first: Mapping[str, float], last: Mapping[str, float], seed: int
    ) -> None:
        if not set(first) == set(last) == set(streams):
            raise InputError(
                f"shares are given for {sorted(first)} and {sorted(last)}, but the streams are "
                f"{sorted(streams)}; name the same families in all three"
            )
        self.streams = dict(streams)
        self.first = np.array([first[name] for name in self.streams], dtype=np.float64)
        self.last = np.array([last[name] for name in self.streams], dtype=np.float64)
        self.rng = np.random.default_rng(seed)
        self.drawn = dict.fromkeys(self.streams, 0)

    def batch(self, rows: int, progress: float) -> torch.Tensor:
        """Token ids ``[rows, length]``, int64."""
        shares = self.first + (self.last - self.first) * progress
        names = self.rng.choice(list(self.streams), size=rows, p=shares / shares.sum())
        blocks = []
        for name in names:
            self.drawn[name] += 1
            blocks.append(self.streams[name].next().astype(np.int64))
        return torch.from_numpy(np.stack(blocks))

    def state(self) -> dict[str, Any]:
        """Everything needed to continue with the same rows; plain JSON values."""
        return {
            "streams": {name: stream.state() for name, stream in self.streams.items()},
            "drawn": dict(self.drawn),
            "rng": self.rng.bit_generator.state,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        for name, stream in self.streams.items():
            stream.restore(state["streams"][name])
        self.drawn = dict(state["drawn"])
        self.rng.bit_generator.state = state["rng"]


def packed_positions(ids: torch.Tensor, bos: int) -> torch.Tensor:
    """Positions ``[B, T]`` that start again at 0 at every `bos`, so that packed documents do not see each other."""
    index = torch.arange(ids.shape[1]).expand_as(ids)
    starts = torch.where(ids == bos, index, 0)
    return index - starts.cummax(dim=1).values
