"""Truncation of ids that were encoded before. (Texts are cut by the backend, while they are encoded.)"""

from __future__ import annotations

from collections.abc import Sequence

from quarterdeck.errors import TokenizerError, UnsupportedOptionError


def truncate_ids(
    first: Sequence[int], second: Sequence[int] | None, remove: int, strategy: str, stride: int, side: str
) -> tuple[list[int], list[int] | None, list[int]]:
    """Takes tokens away from one list of ids, or from the two of a pair.

    Args:
        first, second: ids without special tokens.
        remove: how many to take away; 0 or less takes none.
        strategy: ``"longest_first"`` (of a pair: from the longer one until both are equal, then from both),
            ``"only_first"``, ``"only_second"`` or ``"do_not_truncate"``.
        stride: how many of the tokens that stay are repeated in the overflow.
        side: which end is cut off, ``"right"`` or ``"left"``.

    Returns:
        What is left of each, and what was taken away (nothing is told if it came from both).

    Raises:
        TokenizerError: there are not enough tokens where they are to be taken from.
        UnsupportedOptionError: no such strategy.
    """
    whole = None if second is None else list(second)
    if remove <= 0 or strategy == "do_not_truncate":
        return list(first), whole, []
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        kept, overflow = _cut(first, remove, stride, side)
        return kept, whole, overflow
    if second is None:
        raise TokenizerError(f"truncation='{strategy}' cuts the second text and there is none; use 'only_first'")
    if strategy == "only_second":
        kept, overflow = _cut(second, remove, stride, side)
        return list(first), kept, overflow
    if strategy != "longest_first":
        raise UnsupportedOptionError(
            f"truncation='{strategy}' is not one of longest_first, only_first, only_second, do_not_truncate"
        )
    from_longer = min(abs(len(first) - len(second)), remove)
    from_first = (remove - from_longer) // 2 + (from_longer if len(first) > len(second) else 0)
    kept_first, _ = _cut(first, from_first, 0, side)
    kept_second, _ = _cut(second, remove - from_first, 0, side)
    return kept_first, kept_second, []


def _cut(ids: Sequence[int], remove: int, stride: int, side: str) -> tuple[list[int], list[int]]:
    """What stays and what goes, the latter with ``stride`` of the former."""
    if remove > len(ids):
        raise TokenizerError(f"{remove} tokens are to be cut from a text that has {len(ids)}; cut the other, or both")
    kept = len(ids) - remove
    if side == "left":
        return list(ids[remove:]), list(ids[: remove + stride])
    return list(ids[:kept]), list(ids[max(0, kept - stride) :])
