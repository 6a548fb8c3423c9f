"""Caches against the plainest model of one: a list of tensors that are concatenated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from quarterdeck import DynamicCache, StaticCache
from quarterdeck.cache import Cache
from quarterdeck.errors import InputError

B, G, D, LAYERS, ROOM = 2, 3, 4, 2, 24
SHAPE = SimpleNamespace(num_hidden_layers=LAYERS, num_key_value_heads=G, head_dim=D)
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def dynamic() -> Cache:
    return DynamicCache()


def static() -> Cache:
    return StaticCache(SHAPE, max_cache_len=ROOM)


def static_allocated() -> Cache:
    return StaticCache(SHAPE, max_cache_len=ROOM, max_batch_size=B)


KINDS = pytest.mark.parametrize("make", [dynamic, static, static_allocated], ids=lambda make: make.__name__)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("crop"), st.integers(-6, 12)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 1), min_size=1, max_size=3)),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
        st.tuples(st.just("reset"), st.none()),
        st.tuples(st.just("copy"), st.none()),
    ),
    max_size=12,
)


def block(rows: int, length: int, start: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Keys that are all different, so that none can stand in for another."""
    return torch.randn(
        rows, G, length, D, generator=torch.Generator().manual_seed(10_000 * rows + 100 * length + start)
    ).to(dtype)


class Naive:
    """What a cache is, in one line per operation."""

    def __init__(self, rows: int) -> None:
        self.keys = torch.zeros(rows, G, 0, D)

    def apply(self, name: str, value: Any) -> None:
        length = self.keys.shape[2]
        if name == "append":
            self.keys = torch.cat([self.keys, value], dim=2)
        elif name == "crop":
            self.keys = self.keys[:, :, : length + value if value < 0 else value]
        elif name == "select":
            self.keys = self.keys[value]
        elif name == "repeat":
            self.keys = self.keys.repeat_interleave(value, dim=0)
        elif name == "reset":
            self.keys = self.keys[:, :, :0]


def check(cache: Cache, expected: Tensor) -> None:
    length = expected.shape[2]
    assert cache.get_seq_length() == length
    for layer_idx in range(len(cache)):
        assert cache.get_seq_length(layer_idx) == length
        keys, values = cache[layer_idx]
        if keys is None or values is None:
            assert length == 0
        elif length:
            assert torch.equal(keys[:, :, :length], expected + layer_idx)
            assert torch.equal(values[:, :, :length], -expected - layer_idx)


@KINDS
@given(script=steps)
@settings(max_examples=80, deadline=None)
def test_any_script_equals_concatenation(make: Callable[[], Cache], script: list[tuple[str, Any]]) -> None:
    cache, naive = make(), Naive(B)
    for number, (name, argument) in enumerate(script):
        rows, length = naive.keys.shape[0], naive.keys.shape[2]
        value = argument
        if name == "append":
            value = block(rows, argument, number)
            if cache.get_max_length() is not None and length + argument > ROOM:
                with pytest.raises(InputError, match=f"holds {ROOM} positions and {length + argument} are needed"):
                    cache.update(value, -value, 0)
                check(cache, naive.keys)
                continue
            promised = cache.key_length(argument)
            for layer_idx in range(LAYERS):
                whole, _ = cache.update(value + layer_idx, -value - layer_idx, layer_idx)
                assert whole.shape[2] == promised
        elif name == "crop":
            if argument < -length:
                with pytest.raises(InputError, match=f"cannot remove {-argument} positions from a cache that holds"):
                    cache.crop(argument)
                continue
            cache.crop(argument)
        elif name == "select":
            value = torch.tensor(argument).clamp(max=rows - 1)
            if length == 0 and isinstance(cache, DynamicCache):
                continue  # an empty one has no rows yet
            cache.select(value)
        elif name == "repeat":
            if (length == 0 and isinstance(cache, DynamicCache)) or rows * argument > 8:
                continue
            cache.batch_repeat_interleave(argument)
        elif name == "reset":
            cache.reset()
        else:
            cache = copy.deepcopy(cache)
        if cache.layers and getattr(cache.layers[0], "keys", None) is None and name in ("select", "repeat"):
            continue  # nothing allocated yet: rows are decided by the first block
        naive.apply(name, value)
        check(cache, naive.keys)


@KINDS
def test_what_comes_back_is_what_to_attend_to(make: Callable[[], Cache]) -> None:
    cache = make()
    assert cache.get_seq_length() == 0
    first, second = block(B, 5), block(B, 2, 7)
    for new in (first, second):
        expected_keys = cache.key_length(new.shape[2])
        keys, values = cache.update(new, -new, 0)
        assert keys.shape == values.shape == (B, G, expected_keys, D)
    assert torch.equal(keys[:, :, :7], torch.cat([first, second], dim=2))
    assert torch.equal(values[:, :, :7], -torch.cat([first, second], dim=2))
    assert not keys[:, :, 7:].any(), "what is not written yet must be finite: zero times a masked weight"


def test_layers_fill_one_after_the_other() -> None:
    cache = DynamicCache()
    new = block(B, 3)
    cache.update(new, new, 0)
    assert (cache.get_seq_length(0), cache.get_seq_length(1), len(cache)) == (3, 0, 1)
    cache.update(new, new, 1)
    assert len(cache) == 2
    assert [keys.shape[2] for keys, _ in cache] == [3, 3]


@KINDS
def test_other_names_of_transformers(make: Callable[[], Cache]) -> None:
    cache = make()
    new = block(B, 3)
    cache.update(new, -new, 0)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache[0][0][:, :, :3], new[[1, 0]])
    cache.batch_select_indices(torch.tensor([0]))
    assert torch.equal(cache[0][0][:, :, :3], new[[1]])
    cache.batch_repeat_interleave(3)
    assert torch.equal(cache[0][1][:, :, :3], -new[[1, 1, 1]])
    assert cache.get_max_cache_shape() == (-1 if cache.get_max_length() is None else ROOM)


def test_legacy_form() -> None:
    pairs = tuple((block(B, 4, layer), block(B, 4, layer + 50)) for layer in range(LAYERS))
    cache = DynamicCache.from_legacy_cache(pairs)
    back = cache.to_legacy_cache()
    assert len(back) == LAYERS
    assert all(
        torch.equal(a, b) for mine, given_ in zip(back, pairs, strict=True) for a, b in zip(mine, given_, strict=True)
    )
    assert DynamicCache().to_legacy_cache() == ()


# -- storage -------------------------------------------------------------------------------------------


@given(script=steps)
@example(script=[("crop", 1), ("append", 1)])
@example(script=[("append", 2), ("crop", -4), ("append", 2), ("append", 1)])
@settings(max_examples=50, deadline=None)
def test_dynamic_never_writes_into_what_it_was_given(script: list[tuple[str, Any]]) -> None:
    cache = DynamicCache()
    given_: list[tuple[Tensor, Tensor]] = []
    for number, (name, argument) in enumerate([("append", 3), *script]):
        if name == "append":
            # room behind the end: a careless cache would take it for its own
            buffer = block(B, argument + 20, number)
            given_.append((buffer, buffer.clone()))
            with torch.no_grad():
                cache.update(buffer[:, :, :argument], buffer[:, :, :argument], 0)
        elif name == "crop":
            cache.crop(max(argument, -cache.get_seq_length()))
        elif name == "reset":
            cache.reset()
    for tensor, before in given_:
        assert torch.equal(tensor, before)


@torch.no_grad()
def test_dynamic_grows_seldom() -> None:
    cache, addresses = DynamicCache(), set()
    cache.update(block(1, 100), block(1, 100), 0)
    new = block(1, 1)
    for _ in range(5000):
        keys, _ = cache.update(new, new, 0)
        addresses.add(keys.data_ptr())
    assert cache.get_seq_length() == 5100
    assert len(addresses) <= 22  # by a quarter each time: log(51) / log(1.25) is 17.6, and a few small steps first


@torch.no_grad()
def test_dynamic_holds_no_more_than_it_needs() -> None:
    cache = DynamicCache()
    prompt = block(1, 1000)
    keys, _ = cache.update(prompt, prompt, 0)
    assert keys.data_ptr() == prompt.data_ptr(), "a prompt is not copied"
    keys, _ = cache.update(block(1, 1), block(1, 1), 0)
    assert keys.untyped_storage().nbytes() <= 1.3 * keys.numel() * keys.element_size()
    cache.reset()
    assert cache[0] == (None, None)


def test_a_copy_is_independent() -> None:
    for make in (dynamic, static):
        cache = make()
        for _ in range(2):
            cache.update(block(B, 3), block(B, 3), 0)
        other = copy.deepcopy(cache)
        before = cache[0][0].clone()
        other.crop(1)
        other.update(block(B, 4, 9), block(B, 4, 9), 0)
        assert torch.equal(cache[0][0], before)
        assert (cache.get_seq_length(), other.get_seq_length()) == (6, 5)


# -- gradients and inference mode ----------------------------------------------------------------------


@KINDS
@given(modes=st.lists(st.sampled_from(sorted(MODES)), min_size=2, max_size=7))
@settings(max_examples=60, deadline=None)
def test_modes_may_change_between_steps(make: Callable[[], Cache], modes: list[str]) -> None:
    cache, expected = make(), torch.zeros(B, G, 0, D)
    for number, mode in enumerate(modes):
        with MODES[mode]():
            new = block(B, 2, number)
            keys, _ = cache.update(new.clone(), new.clone(), 0)
        expected = torch.cat([expected, new.clone()], dim=2)
        assert torch.equal(keys[:, :, : expected.shape[2]], expected)
    cache.crop(1)
    cache.select(torch.tensor([1, 1]))
    assert torch.equal(cache[0][0][:, :, :1], expected[[1, 1], :, :1])


@KINDS
def test_gradients_flow_through_and_survive_what_follows(make: Callable[[], Cache]) -> None:
    cache = make()
    blocks = [block(B, 3, n).requires_grad_() for n in range(2)]
    for new in blocks:
        keys, values = cache.update(new, 2 * new, 0)
    with torch.no_grad():
        cache.update(block(B, 1), block(B, 1), 0) if isinstance(cache, DynamicCache) else None
    (keys.square().sum() + values.sum()).backward()
    for new in blocks:
        assert torch.allclose(new.grad, 2 * new + 2)


def test_keys_without_gradients_may_be_needed_for_those_of_queries() -> None:
    # only the queries are trained: the keys carry no gradient, but the graph holds on to them
    cache = DynamicCache()
    query = torch.ones(B, G, 1, D, requires_grad=True)
    total = torch.zeros(())
    expected = torch.zeros(B, G, 1, D)
    for number in range(4):
        keys, _ = cache.update(block(B, 2, number), block(B, 2, number), 0)
        total = total + (query @ keys.transpose(2, 3)).square().sum()
        expected += 2 * (query.detach() @ keys.transpose(2, 3)) @ keys
    total.backward()
    assert torch.allclose(query.grad, expected, rtol=1e-5)


# -- errors --------------------------------------------------------------------------------------------


@KINDS
def test_blocks_of_another_shape_are_refused(make: Callable[[], Cache]) -> None:
    cache = make()
    cache.update(block(B, 3), block(B, 3), 0)
    for wrong, message in (
        (block(1, 2), r"batch of 2.* 1"),  # would be spread over both rows
        (block(3, 2), r"batch of 2.* 3"),
        (block(B, 2)[:, :1], r"key-value heads: 3.* 1"),
        (block(B, 2)[..., :1], r"width 4.* 1"),
    ):
        with pytest.raises(InputError, match=message):
            cache.update(wrong, wrong, 0)
    assert cache.get_seq_length() == 3


@KINDS
def test_blocks_of_another_type_are_refused(make: Callable[[], Cache]) -> None:
    cache = make()
    cache.update(block(B, 3), block(B, 3), 0)
    half = block(B, 2, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"float32.*bfloat16"):
        cache.update(half, half, 0)


def test_arguments_of_transformers() -> None:
    cache = DynamicCache(config=SHAPE)
    cache.update(block(B, 3), block(B, 3), 0)
    assert cache.get_seq_length() == 3
    for make in (DynamicCache, lambda config: StaticCache(config, ROOM)):
        with pytest.raises(InputError, match=r"config is a dict, but must be a model's configuration: model.config"):
            make(config={"num_hidden_layers": 2})
    with pytest.raises(InputError, match=r"ddp_cache_data is a SimpleNamespace.*given as config="):
        DynamicCache(SHAPE)
    pairs = [(block(B, 3), block(B, 3, 1)), (block(B, 3, 2), block(B, 3, 3))]
    assert all(torch.equal(a, b) for a, b in zip(DynamicCache(pairs)[1], pairs[1], strict=True))


def test_they_say_what_they_are() -> None:
    assert repr(DynamicCache()) == "DynamicCache(0 layers, empty)"
    assert repr(static()) == "StaticCache(2 layers, empty)"
    cache = static_allocated()
    cache.update(block(B, 3), block(B, 3), 0)
    assert repr(cache) == "StaticCache(2 layers, 3 positions of 24, batch of 2, torch.float32 on cpu)"
    assert (cache.max_batch_size, cache.max_cache_len) == (B, ROOM)
    assert (static().max_batch_size, static().max_cache_len) == (None, ROOM)
    cache.select(torch.tensor([1]))
    assert cache.max_batch_size == 1
