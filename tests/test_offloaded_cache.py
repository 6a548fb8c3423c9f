"""The offloaded caches: the numbers of those that are not, and nothing read before it has arrived."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity import make_ours, padding_mask, random_ids
from quarterdeck import DynamicCache, OffloadedCache, StaticCache
from quarterdeck.cache import Cache
from quarterdeck.cache.lanes import DirectLane, Lane, Lanes
from quarterdeck.cache.offloaded import OffloadedLayer, OffloadedRing
from quarterdeck.errors import InputError

B, G, D, LAYERS, ROOM = 2, 3, 4, 3, 40
SHAPE = SimpleNamespace(num_hidden_layers=LAYERS, num_key_value_heads=G, head_dim=D)


class LateLane:
    """A lane that copies as late as it may: whoever reads without waiting finds what was there before."""

    def __init__(self, log: list[str]) -> None:
        self._queue: list[Callable[[], object]] = []
        self._log = log

    def run(self, copy: Callable[[], object], tensors: tuple[Tensor, ...]) -> None:
        self._queue.append(copy)
        self._log.append("run")

    def wait(self) -> None:
        self._log.append("wait")
        self._flush()

    def finish(self) -> None:
        self._flush()

    def _flush(self) -> None:
        for copy_ in self._queue:
            copy_()
        self._queue.clear()


class FarLanes(Lanes):
    """The CPU plays a device with a memory of its own."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self._lanes = {torch.device("cpu"): lane}

    def to(self, device: torch.device) -> Lane | None:
        return self._lanes[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> FarLanes:
        self.finish()
        return self


def far_cache(lane: Lane, limit: int | None = None) -> Cache:
    """An offloaded cache whose device is far."""
    cache: Any = DynamicCache(offloading=True) if limit is None else StaticCache(SHAPE, limit, offloading=True)
    ring = OffloadedRing(limit, FarLanes(lane))
    if limit is None:
        cache._ring = ring
    else:
        cache.layers = list(ring.grown(LAYERS))
    return cache


MAKERS: dict[str, Callable[[], Cache]] = {
    "near": OffloadedCache,
    "near_fixed": lambda: StaticCache(SHAPE, ROOM, offloading=True),
    "near_fixed_allocated": lambda: StaticCache(SHAPE, ROOM, max_batch_size=B, offloading=True),
    "direct": lambda: far_cache(DirectLane()),
    "late": lambda: far_cache(LateLane([])),
    "late_fixed": lambda: far_cache(LateLane([]), ROOM),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("crop"), st.integers(-6, 12)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("reset"), st.none()),
        st.tuples(st.just("copy"), st.none()),
        st.tuples(st.just("look"), st.none()),
    ),
    max_size=14,
)


def block(length: int, seed: int) -> Tensor:
    return torch.randn(B, G, length, D, generator=torch.Generator().manual_seed(seed))


@KINDS
@given(script=steps, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_any_script_equals_the_dynamic_cache(kind: str, script: list[tuple[str, Any]], seed: int) -> None:
    cache, plain = MAKERS[kind](), DynamicCache()
    modes = [torch.no_grad, torch.inference_mode, torch.enable_grad]
    for number, (name, argument) in enumerate(script):
        length = plain.get_seq_length()
        if name == "append" and (cache.get_max_length() is None or length + argument <= ROOM):
            with random.Random(seed + number).choice(modes)():
                assert cache.key_length(argument) == length + argument
                for layer in range(LAYERS):
                    new = block(argument, 10 * number + layer)
                    mine, theirs = cache.update(new.clone(), -new, layer), plain.update(new, -new, layer)
                    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        elif name == "crop" and argument >= -length:
            cache.crop(argument)
            plain.crop(argument)
        elif name == "select" and length:
            cache.select(torch.tensor(argument))
            plain.select(torch.tensor(argument))
        elif name == "reset":
            cache.reset()
            plain.reset()
        elif name == "copy":
            cache = copy.deepcopy(cache)
        elif name == "look":
            for (keys, values), (wanted, _) in zip(cache, plain, strict=False):
                assert keys is None or wanted is None or torch.equal(keys, wanted)
                assert values is None or wanted is None or torch.equal(values, -wanted)
        assert cache.get_seq_length() == plain.get_seq_length()


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("kind", ["near", "late"])
@torch.no_grad()
def test_a_model_says_the_same(kind: str, side: str | None) -> None:
    model = make_ours(num_key_value_heads=2, num_hidden_layers=LAYERS)
    ids = random_ids(B, 20)
    mask = None if side is None else padding_mask(B, 20, side)
    caches = [MAKERS[kind](), DynamicCache()]
    for start, end in ((0, 12), (12, 13), (13, 20)):
        given_mask = None if mask is None else mask[:, :end]
        mine, theirs = (model(ids[:, start:end], attention_mask=given_mask, past_key_values=c).logits for c in caches)
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["offloaded", "offloaded_static"])
def test_generation(name: str) -> None:
    model = make_ours(eos_token_id=None)
    options: dict[str, Any] = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(random_ids(B, 5), **options)
    ours = model.generate(random_ids(B, 5), cache_implementation=name, **options)
    assert torch.equal(ours.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, plain.logits, strict=True))
    assert isinstance(ours.past_key_values, OffloadedCache if name == "offloaded" else StaticCache)
    assert all(isinstance(layer, OffloadedLayer) for layer in ours.past_key_values.layers)
    assert ours.past_key_values.get_max_cache_shape() == (-1 if name == "offloaded" else 5 + 12 - 1)


def test_the_next_layer_is_sent_for_while_one_computes() -> None:
    log: list[str] = []
    cache = far_cache(LateLane(log))
    for layer in range(LAYERS):
        cache.update(block(5, layer), block(5, layer), layer)
    del log[:]
    cache.layer(LAYERS - 1)
    cache.update(block(1, 7), block(1, 7), 0)
    # the first layer was sent for by the last one of the prompt; the second is on its way when the first returns
    assert log == ["wait", "run", "run"]
    layers = [layer for layer in cache.layers if isinstance(layer, OffloadedLayer)]
    assert [layer._sent is not None for layer in layers] == [False, True, False]
    cache.crop(3)
    assert all(layer._sent is None for layer in layers), "what was sent is of the past"


def test_the_device_holds_two_layers() -> None:
    alive: list[int] = []
    cache = far_cache(DirectLane())
    for number in range(4):
        for layer in range(LAYERS):
            cache.update(block(3, number), block(3, number), layer)
            layers = [one for one in cache.layers if isinstance(one, OffloadedLayer)]
            alive.append(sum(one._sent is not None for one in layers))
    assert max(alive) == 1, "besides the one that is returned"


def test_gradients_reach_what_is_new() -> None:
    for kind in ("near", "late"):
        cache = MAKERS[kind]()
        cache.update(block(3, 0), block(3, 0), 0)
        new = block(2, 1).requires_grad_()
        keys, values = cache.update(new, new, 0)
        cache.update(block(2, 2), block(2, 2), 0)
        (keys.square().sum() + values.sum()).backward()
        assert torch.allclose(new.grad, 2 * new + 1)


def test_a_fixed_room_is_kept() -> None:
    cache = StaticCache(SHAPE, ROOM, offloading=True)
    assert not cache.is_compileable
    assert repr(cache) == "StaticCache(3 layers, empty)"
    cache.update(block(5, 0), block(5, 0), 0, torch.arange(5))
    with pytest.raises(InputError, match=r"cache_position must be 5 to 6, not.*without offloading"):
        cache.update(block(2, 0), block(2, 0), 0, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="holds 40 positions and 41 are needed; make it with a larger max_cache_len"):
        cache.update(block(36, 0), block(36, 0), 0)
    with pytest.raises(InputError, match="a batch of 2, but the input has 1"):
        cache.update(block(2, 0)[:1], block(2, 0)[:1], 0)
    assert cache.get_seq_length() == 5
    assert (cache.max_batch_size, cache.get_max_length()) == (B, ROOM)


def test_it_holds_what_it_says() -> None:
    cache = StaticCache(SHAPE, ROOM, max_batch_size=B, dtype=torch.bfloat16, offloading=True)
    assert cache.nbytes == LAYERS * 2 * B * G * ROOM * D * 2
    grown = OffloadedCache(config=SHAPE)
    for number in range(300):
        grown.update(block(1, number), block(1, number), 0)
    exact = 2 * B * G * 300 * D * 4
    assert exact <= grown.nbytes <= 1.5 * exact
    assert repr(grown) == "OffloadedCache(1 layers, 300 positions, batch of 2, torch.float32 on cpu)"
    with pytest.raises(InputError, match="config is a dict"):
        OffloadedCache({"num_hidden_layers": 2})


def test_legacy_form() -> None:
    pairs = [(block(4, layer), block(4, layer + 50)) for layer in range(LAYERS)]
    cache = OffloadedCache.from_legacy_cache(pairs)
    assert all(torch.equal(a, b) for a, b in zip(cache.to_legacy_cache()[2], pairs[2], strict=True))
