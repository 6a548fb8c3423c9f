"""The quantized cache: as small as it says, as near as its bits allow, and otherwise a cache like any other."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity import make_ours, padding_mask, random_ids
from quarterdeck import AutoModelForCausalLM, AutoTokenizer, QuantizedCache
from quarterdeck.cache import DynamicCache
from quarterdeck.cache.groups import Grouping, equal_groups, pack, unpack
from quarterdeck.cache.quantized import QuantizedLayer
from quarterdeck.errors import InputError, UnsupportedOptionError

B, G, D = 2, 3, 8
SMALL: dict[str, Any] = {"q_group_size": 8, "residual_length": 8}


def block(rows: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = D) -> Tensor:
    return torch.randn(rows, G, length, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer_of(cache: QuantizedCache, index: int = 0) -> QuantizedLayer:
    layer = cache.layer(index)
    assert isinstance(layer, QuantizedLayer)
    return layer


# -- the arithmetic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("tokens", "channels"), [(8, 1), (1, 8), (1, 4), (8, 4)])
@given(seed=st.integers(0, 1000), spread=st.sampled_from([1e-4, 1.0, 300.0]), middle=st.sampled_from([0.0, -5.0, 80.0]))
@settings(max_examples=15)
def test_no_number_is_further_than_half_a_step(
    bits: int, tokens: int, channels: int, seed: int, spread: float, middle: float
) -> None:
    x = block(1, 16, seed) * spread + middle
    packed = pack(x, Grouping(bits, tokens, channels))
    groups = x.view(1, G, 16 // tokens, tokens, D // channels, channels)
    low, high = groups.amin((3, 5), keepdim=True), groups.amax((3, 5), keepdim=True)
    # half a step, and both ends of the group as float16 has them, the smallest number of which is 2**-24
    steps = 2**bits - 1
    allowed = (high - low) / steps * 0.5 + (low.abs() + high - low) * 2**-10 + (steps + 1) * 2**-25
    error = (unpack(packed, torch.float32).view_as(groups) - groups).abs()
    assert (error <= allowed).all()


def test_packed_numbers_are_where_the_layout_says() -> None:
    grouping = Grouping(4, 8, 1)
    x = block(B, 16)
    packed = pack(x, grouping)
    assert packed.codes.shape == (B, G, 16, D // 2)
    assert packed.scales.shape == packed.minimums.shape == (B, G, 2, D)
    assert (packed.codes.dtype, packed.scales.dtype) == (torch.uint8, torch.float16)
    back = unpack(packed, torch.float32)
    for token, channel in ((0, 1), (9, 3), (15, 7)):
        byte = int(packed.codes[1, 2, token, channel % 4])
        code = byte >> 4 if channel >= 4 else byte & 15
        group = (1, 2, token // 8, channel)
        expected = code * packed.scales[group].float() + packed.minimums[group].float()
        assert torch.allclose(back[1, 2, token, channel], expected)


@pytest.mark.parametrize("value", [0.0, 3.5, -1e-9, 6e4, 1e30])
def test_equal_and_enormous_numbers_stay_finite(value: float) -> None:
    back = unpack(pack(torch.full((1, 1, 8, 8), value), Grouping(4, 8, 1)), torch.float32)
    assert torch.allclose(back, torch.tensor(value).clamp(max=65504.0), rtol=1e-3)


def test_channels_are_cut_equally() -> None:
    assert [equal_groups(width, 64) for width in (128, 96, 64, 32, 6, 192)] == [64, 48, 64, 32, 6, 64]


# -- a cache like any other ----------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("crop"), st.integers(-20, 60)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 1), min_size=1, max_size=3)),
        st.tuples(st.just("copy"), st.none()),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=10,
)


@given(
    script=steps,
    residual=st.sampled_from([0, 5, 8, 20]),
    axes=st.sampled_from([(0, 0), (-1, 0), (-1, -1)]),
    mode=st.sampled_from([torch.no_grad, torch.inference_mode, torch.enable_grad]),
)
@settings(max_examples=120)
def test_any_script_is_near_concatenation(
    script: list[tuple[str, Any]], residual: int, axes: tuple[int, int], mode: Any
) -> None:
    cache = QuantizedCache(nbits=8, axis_key=axes[0], axis_value=axes[1], q_group_size=8, residual_length=residual)
    plain = torch.zeros(B, G, 0, D)
    exact = 0  # so many of the last positions must be
    for number, (name, argument) in enumerate(script):
        length = plain.shape[2]
        if name == "append":
            new = block(plain.shape[0], argument, number)
            assert cache.key_length(argument) == length + argument
            with mode():
                keys, values = cache.update(new, -new, 0)
            plain, exact = torch.cat([plain, new], dim=2), min(exact + argument, residual)
            assert torch.equal(keys[:, :, length:], new), "what is new is exact"
            assert (keys - plain).abs().max() < 0.05
            assert (values + plain).abs().max() < 0.05
        elif name == "crop":
            if argument < -length:
                continue
            cache.crop(argument)
            plain = plain[:, :, : max(length + argument, 0) if argument < 0 else argument]
            exact = max(exact - (length - plain.shape[2]), 0)
        elif name == "select" and length:
            rows = torch.tensor(argument).clamp(max=plain.shape[0] - 1)
            cache.select(rows)
            plain = plain[rows]
        elif name == "copy":
            cache = copy.deepcopy(cache)
        elif name == "reset":
            cache.reset()
            plain, exact = torch.zeros(B, G, 0, D), 0
        assert cache.get_seq_length() == plain.shape[2]
        if plain.shape[2] and cache.layers:
            kept = cache[0][0]
            assert kept is not None
            assert (kept - plain).abs().max() < 0.05
            assert torch.equal(kept[:, :, plain.shape[2] - exact :], plain[:, :, plain.shape[2] - exact :])


def test_recent_tokens_are_exact_and_old_ones_are_not() -> None:
    cache = QuantizedCache(**SMALL)
    x = block(1, 61)
    for at in range(61):
        cache.update(x[:, :, at : at + 1], x[:, :, at : at + 1], 0)
        blocks = layer_of(cache).blocks()
        exact = blocks.recent_keys.shape[2]
        assert min(at + 1, 8) <= exact <= 15
        assert torch.equal(blocks.recent_keys, x[:, :, at + 1 - exact : at + 1])
    kept = cache[0][0]
    assert kept is not None
    old = kept[:, :, : 61 - exact]
    assert 0 < (old - x[:, :, : 61 - exact]).abs().max() < 0.3


def test_what_is_quantized_stays_as_it_is() -> None:
    cache = QuantizedCache(**SMALL)
    cache.update(block(1, 40), block(1, 40), 0)
    before = [kept.clone() for kept in layer_of(cache).blocks().keys.tensors]  # type: ignore[union-attr]
    for number in range(30):
        cache.update(block(1, 1, number), block(1, 1, number), 0)
    after = layer_of(cache).blocks().keys
    assert after is not None
    for old, new in zip(before, after.tensors, strict=True):
        assert torch.equal(new[:, :, : old.shape[2]], old)


def test_blocks_are_all_that_is_stored() -> None:
    cache = QuantizedCache(**SMALL)
    with pytest.raises(InputError, match="this layer of a QuantizedCache is empty"):
        layer_of(cache).blocks()
    layer_of(cache).append(block(1, 5), block(1, 5, 1))
    assert layer_of(cache).blocks().keys is None
    layer_of(cache).append(block(1, 30, 2), block(1, 30, 3))
    blocks = layer_of(cache).blocks()
    assert blocks.keys is not None
    assert blocks.values is not None
    whole = torch.cat([unpack(blocks.keys, torch.float32), blocks.recent_keys], dim=2)
    assert torch.equal(whole, cache[0][0])
    whole = torch.cat([unpack(blocks.values, torch.float32), blocks.recent_values], dim=2)
    assert torch.equal(whole, cache[0][1])


@pytest.mark.parametrize(("nbits", "most"), [(4, 4.51), (8, 8.51)])
def test_it_is_small(nbits: int, most: float) -> None:
    heads, width, length = 2, 128, 2048
    cache = QuantizedCache(nbits=nbits, residual_length=0)
    x = torch.randn(1, heads, length, width, dtype=torch.float16)
    cache.update(x, x, 0)
    rest = 2 * 64 * heads * width * 2  # the exact part of both has room for a block
    assert (cache.nbytes - rest) * 8 / (2 * x.numel()) < most
    for number in range(200):  # and stays so as it grows
        cache.update(x[:, :, number : number + 1], x[:, :, number : number + 1], 0)
    stored = 2 * heads * cache.get_seq_length() * width
    assert (cache.nbytes - rest) * 8 / stored < most * 17 / 16 + 0.1
    assert DynamicCache([(x, x.clone())]).nbytes == 2 * x.numel() * 2
    cache.reset()
    assert cache.nbytes == 0


def test_the_prompt_is_quantized_without_a_copy_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def spy(x: Tensor, grouping: Grouping) -> Any:
        sizes.append(x.shape[2])
        return pack(x, grouping)

    monkeypatch.setattr("quarterdeck.cache.groups.pack", spy)
    cache = QuantizedCache()
    cache.update(block(1, 5000), block(1, 5000), 0)
    assert max(sizes) == 1024
    assert sum(sizes) == 2 * ((5000 - 128) // 64 * 64)


# -- in models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [None, "left"])
@torch.no_grad()
def test_a_model_says_nearly_the_same(side: str | None) -> None:
    model = make_ours(num_key_value_heads=2, use_qk_norm=True)
    ids = random_ids(B, 60)
    given_mask = None if side is None else padding_mask(B, 60, side)
    exact = model(ids, attention_mask=given_mask).logits
    errors = {}
    for nbits in (4, 8):
        cache = QuantizedCache(nbits=nbits, **SMALL)
        parts = []
        for start, end in ((0, 40), (40, 41), (41, 57), (57, 60)):
            mask = None if given_mask is None else given_mask[:, :end]
            parts.append(model(ids[:, start:end], attention_mask=mask, past_key_values=cache).logits)
        error = (torch.cat(parts, dim=1) - exact)[:, 40:]
        errors[nbits] = float(error.norm() / exact[:, 40:].norm())
        assert torch.allclose(parts[0], exact[:, :40], rtol=1e-4, atol=1e-5), "a prompt by itself is exact"
    assert 0 < errors[8] < 0.01
    assert errors[8] < errors[4] / 5 < 0.05


@torch.no_grad()
def test_the_embedded_model_keeps_its_words() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained("midshipman"), AutoTokenizer.from_pretrained("midshipman")
    inputs = tokenizer("The tallest penguins live in Antarctica. " * 40, return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True}
    exact = model.generate(**inputs, **options, output_logits=True)
    eight = model.generate(
        **inputs, **options, output_logits=True, cache_implementation="quantized", cache_config={"nbits": 8}
    )
    four = model.generate(**inputs, **options, cache_implementation="quantized")
    assert torch.equal(eight.sequences, exact.sequences)
    assert (eight.logits[5] - exact.logits[5]).abs().max() > 0
    assert repr(four.past_key_values).endswith("batch of 1, torch.float32 on cpu, 4 bits)")
    assert four.past_key_values.nbytes < exact.past_key_values.nbytes / 1.5


def test_gradients_reach_what_is_new() -> None:
    cache = QuantizedCache(**SMALL)
    cache.update(block(1, 30), block(1, 30), 0)
    new = block(1, 3).requires_grad_()
    keys, values = cache.update(new, new, 0)
    (keys.sum() + values.sum()).backward()
    assert torch.equal(new.grad, torch.full_like(new, 2.0))
    assert not layer_of(cache).blocks().recent_keys.requires_grad


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nbits": 60}, InputError, "nbits=60: it must be 4 or 8"),
        ({"nbits": 2}, UnsupportedOptionError, "nbits=2 is not in this version: choose 4 or 8"),
        ({"nbits": True}, InputError, "nbits=True"),
        ({"axis_key": 1}, UnsupportedOptionError, r"axis_key=1: it must be 0 \(groups of channels"),
        ({"axis_value": 2}, UnsupportedOptionError, "axis_value=2"),
        ({"q_group_size": 4}, InputError, "q_group_size=4: it must be a whole number of at least 8"),
        ({"residual_length": -1}, InputError, "residual_length=-1: it must be a whole number of at least 0"),
        ({"residual_length": 1.5}, InputError, "residual_length=1.5"),
        ({"backend": "hqq"}, UnsupportedOptionError, "backend='hqq' is not there: leave it out, or write 'quanto'"),
        ({"backend": SimpleNamespace()}, InputError, "backend is a SimpleNamespace.*goes to config="),
        ({"config": {"num_hidden_layers": 2}}, InputError, "config is a dict, but must be a model's configuration"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantizedCache(**options)
    if "config" not in options:
        model = make_ours()
        with pytest.raises(error, match=message):
            model.generate(random_ids(1, 4), cache_implementation="quantized", cache_config=options, max_new_tokens=2)


def test_cache_config_is_for_the_quantized_cache() -> None:
    model, ids = make_ours(), random_ids(1, 4)
    with pytest.raises(UnsupportedOptionError, match="cache_config has 'bits', which is no argument of QuantizedCache"):
        model.generate(ids, cache_implementation="quantized", cache_config={"bits": 4}, max_new_tokens=2)
    for kind in (None, "static", "dynamic"):
        with pytest.raises(InputError, match=r"cache_config=\{'nbits': 4\} is for cache_implementation='quantized'"):
            model.generate(ids, cache_implementation=kind, cache_config={"nbits": 4}, max_new_tokens=2)
    output = model.generate(
        ids, cache_implementation="dynamic_full", cache_config={}, max_new_tokens=2, return_dict_in_generate=True
    )
    assert type(output.past_key_values) is DynamicCache
    chosen: dict[str, Any] = {"backend": "quanto", "config": model.config, "axis_key": 0, "axis_value": 0, "nbits": 8}
    output = model.generate(
        ids,
        cache_implementation="quantized",
        cache_config=chosen,
        max_new_tokens=2,
        return_dict_in_generate=True,
    )
    assert output.past_key_values.storage.axis_key == 0
    assert "backend" in chosen, "what is the caller's stays as it is"


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_other_ways_to_decode_find_the_same(options: dict[str, Any]) -> None:
    model = make_ours(eos_token_id=None)
    ids = random_ids(1, 30)
    plain = model.generate(ids, max_new_tokens=12, **options)
    config = {"nbits": 8, "q_group_size": 8, "residual_length": 8}
    ours = model.generate(ids, max_new_tokens=12, cache_implementation="quantized", cache_config=config, **options)
    assert torch.equal(ours, plain)


def test_prompts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later parts see what is rounded of earlier ones; in return memory does not grow with the prompt."""
    monkeypatch.setattr("quarterdeck.generation.caches.PROMPT_CHUNK", 8)
    model, ids = make_ours(), random_ids(1, 30)
    runs: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: runs.append(inputs[0].shape[1]))
    options: dict[str, Any] = {"max_new_tokens": 2, "eos_token_id": None}
    quantized = {"cache_implementation": "quantized", "cache_config": SMALL}
    for more, expected in (
        ({}, [8, 8, 8, 6, 1]),
        (quantized, [8, 8, 8, 6, 1]),
        ({"past_key_values": QuantizedCache(**SMALL)}, [8, 8, 8, 6, 1]),
        (quantized | {"prefill_chunk_size": 30}, [30, 1]),
    ):
        runs.clear()
        model.generate(ids, **options, **more)
        assert runs == expected


def test_arguments_of_transformers() -> None:
    config = make_ours().config
    cache = QuantizedCache("quanto", config, nbits=4, axis_key=0, axis_value=0, q_group_size=64, residual_length=128)
    cache.update(block(1, 3), block(1, 3), 1)
    assert repr(cache) == "QuantizedCache(2 layers, 0 positions, batch of 1, torch.float32 on cpu, 4 bits)"
    assert (cache.get_seq_length(1), cache.get_max_cache_shape(), cache.rows) == (3, -1, 1)
    for wrong, message in ((block(2, 2), "batch of 1"), (block(1, 2, dtype=torch.float16), "float32.*float16")):
        with pytest.raises(InputError, match=message):
            cache.update(wrong, wrong, 1)
