"""The cache of fixed size: where it is, what it counts, and places that a tensor gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck import DynamicCache, StaticCache
from quarterdeck.errors import InputError
from test_cache import LAYERS, ROOM, SHAPE, B, D, G, block, static, static_allocated


def test_static_stays_where_it_is() -> None:
    cache = StaticCache(SHAPE, max_cache_len=ROOM, max_batch_size=B, dtype=torch.bfloat16)
    address = cache[0][0].data_ptr()
    for start in range(0, ROOM, 4):
        keys, _ = cache.update(block(B, 4, start, torch.bfloat16), block(B, 4, start, torch.bfloat16), 0)
        assert (keys.data_ptr(), keys.shape[2], keys.dtype) == (address, ROOM, torch.bfloat16)
    cache.reset()
    assert cache[0][0].data_ptr() == address
    assert not cache[0][0].any()
    assert cache.is_compileable
    assert not DynamicCache().is_compileable


def test_static_counts_what_is_written_not_what_it_looks_like() -> None:
    cache = static()
    zeros = torch.zeros(B, G, 5, D)  # the keys of left padding with a zero embedding
    cache.update(zeros, zeros, 0)
    assert cache.get_seq_length() == 5


def test_static_writes_where_cache_position_says() -> None:
    cache = static()
    new = block(B, 3)
    keys, values = cache.update(new, -new, 0, torch.tensor([4, 6, 2]))
    assert torch.equal(keys[:, :, [4, 6, 2]], new)
    assert torch.equal(values[:, :, [4, 6, 2]], -new)
    assert cache.get_seq_length() == 7
    cache.update(2 * new, new, 0, torch.tensor([0, 1, 2]))
    assert torch.equal(keys[:, :, [0, 1, 2]], 2 * new)
    assert cache.get_seq_length() == 7


def test_static_full() -> None:
    cache = static()
    with pytest.raises(InputError, match=f"holds {ROOM} positions and {ROOM + 1} are needed.*larger max_cache_len"):
        cache.update(block(B, ROOM + 1), block(B, ROOM + 1), 0)
    with pytest.raises(InputError, match=f"holds {ROOM} positions and {ROOM + 1} are needed"):
        cache.update(block(B, 1), block(B, 1), 0, torch.tensor([ROOM]))
    with pytest.raises(InputError, match="max_cache_len is 0"):
        StaticCache(SHAPE, max_cache_len=0)


@pytest.mark.parametrize("length", [0, -1, 2.5, 3.0, True, "8", None])
def test_lengths_that_are_no_lengths(length: Any) -> None:
    with pytest.raises(InputError, match=f"max_cache_len is {length!r}, but must be a whole number of at least 1"):
        StaticCache(SHAPE, max_cache_len=length)
    if length is not None:
        with pytest.raises(InputError, match=f"max_batch_size is {length!r}, but must be a whole number"):
            StaticCache(SHAPE, max_cache_len=4, max_batch_size=length)


@pytest.mark.parametrize("option", [{"device": "cpu"}, {"dtype": torch.float16}])
def test_options_of_buffers_need_buffers(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"device and dtype say where buffers are made at once.*max_batch_size"):
        StaticCache(SHAPE, ROOM, **option)
    assert StaticCache(SHAPE, ROOM, max_batch_size=B, **option)[0][0] is not None


# -- places given by a tensor --------------------------------------------------------------------------


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """Counts the numbers that the host reads out of tensors: on an accelerator it would wait for each."""
    counts: list[int] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield counts
    counts.append(sum(event.name == "aten::_local_scalar_dense" for event in profile.events()))


@given(script=st.lists(st.one_of(st.integers(0, ROOM - 1), st.sampled_from(["append", "crop", "ask"])), max_size=12))
@settings(max_examples=80, deadline=None)
def test_length_is_exact_however_it_was_written(script: list[Any]) -> None:
    cache, length = static_allocated(), 0
    for number, step in enumerate(script):
        new = block(B, 1, number)
        if step == "append":
            if length == ROOM:
                continue
            keys, _ = cache.update(new, new, 1)
            assert torch.equal(keys[:, :, length], new[:, :, 0])
            length += 1
        elif step == "crop":
            cache.layers[1].crop(length // 2)
            length //= 2
        elif step == "ask":
            assert cache.get_seq_length(1) == length
        else:
            keys, _ = cache.update(new, new, 1, torch.tensor([step]))
            assert torch.equal(keys[:, :, step], new[:, :, 0])
            length = max(length, step + 1)
    assert cache.get_seq_length(1) == length
    assert cache.get_seq_length(0) == 0


def test_places_are_read_once_for_all_layers_and_only_on_the_cpu() -> None:
    cache = static_allocated()
    with counted_reads() as reads:
        for layer_idx in range(LAYERS):
            cache.update(block(B, 2), block(B, 2), layer_idx, torch.tensor([3, 4]))
    assert reads == [1]
    elsewhere = StaticCache(SHAPE, ROOM, max_batch_size=B, device="meta")
    new = block(B, 2).to("meta")
    for layer_idx in range(LAYERS):  # tensors without numbers: nothing can have been read
        elsewhere.update(new, new, layer_idx, torch.tensor([3, 4], device="meta"))
