"""Keys and values that outlive a generation: what the next prompt begins with need not be read again.

    cache = prefix.borrow(ids)             # holds cache.get_seq_length() of the ids already
    ...                                    # generate with it
    prefix.give_back(cache, read)          # the ids that it now holds

Numbers depend a little on how many positions a run of the model reads at once. Where answers must not depend on what
was asked before, prompts are read in blocks of a fixed size, and only whole blocks of them are given back and borrowed:
then every run reads just what it would have read without the cache.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from quarterdeck.cache import Cache, DynamicCache


class PrefixCache:
    """The cache of one conversation, or of whatever was asked last.

    May be used by several threads: a cache that is borrowed is nobody else's, who begins meanwhile gets an empty one,
    and of two that are given back the later one stays.

    Args:
        block: numbers of tokens that are borrowed are multiples of it.
        with_answers: whether what was generated is to be given back with its prompt, even if its reader left early. It
            was read token by token, so numbers may then depend in their last bits on what was asked before.

    Attributes:
        with_answers: as given.
    """

    def __init__(self, block: int = 1, *, with_answers: bool = False) -> None:
        self.with_answers = with_answers
        self._block = block
        self._lock = threading.Lock()
        self._kept: tuple[Cache, list[int]] | None = None

    def borrow(self, ids: Sequence[int]) -> Cache:
        """A cache with nothing but the beginning of ``ids``; at least the last of them is left to be read."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None:
            return DynamicCache()
        cache, read = kept
        shared = min(common_prefix(read, ids), len(ids) - 1) // self._block * self._block
        if shared <= 0:
            return DynamicCache()
        cache.crop(shared)
        return cache

    def give_back(self, cache: Cache, read: Sequence[int]) -> None:
        """Keep a cache whose first positions are those of ``read``."""
        with self._lock:
            self._kept = (cache, list(read))

    def forget(self) -> None:
        """Free what is kept."""
        with self._lock:
            self._kept = None


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two sequences have in common at their beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
