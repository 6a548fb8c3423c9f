"""Cached equals uncached, chunked equals whole, and both equal transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from parity import ROPES, SWITCHES, assert_close, make_ours, make_pair, padding_mask, random_ids, transformers
from quarterdeck import CohereForCausalLM, DynamicCache, StaticCache
from quarterdeck.cache import Cache
from quarterdeck.errors import InputError

ATTENTION = ("eager", "sdpa")
B, T = 3, 12
CHUNKS = ((0, 5), (5, 9), (9, 10), (10, 12))
# their frequencies depend on the length so far, so that a chunk cannot know what the whole will use
LENGTH_BOUND = ("dynamic_8", "longrope_8", "longrope_original_8", "longrope_attention_factor")


def make_cache(kind: str, model: CohereForCausalLM, room: int = 16, rows: int | None = None) -> Cache:
    return DynamicCache() if kind == "dynamic" else StaticCache(model.config, max_cache_len=room, max_batch_size=rows)


def in_chunks(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, cache: Any, **options: Any) -> torch.Tensor:
    logits = []
    for start, end in CHUNKS:
        seen = None if mask is None else mask[:, :end]
        at = {name: tensor[..., start:end] for name, tensor in options.items()}
        logits.append(model(ids[:, start:end], attention_mask=seen, past_key_values=cache, **at).logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", [*SWITCHES, *(name for name in ROPES if name not in LENGTH_BOUND)])
@torch.no_grad()
def test_chunked_equals_whole(case: str, attention: str) -> None:
    model = make_ours(attention, **(SWITCHES | ROPES)[case])
    ids = random_ids(B, T)
    for side in (None, "left"):
        mask = padding_mask(B, T, side)
        real = slice(None) if mask is None else mask.bool()
        whole = model(ids, attention_mask=mask, use_cache=False).logits
        for kind in ("dynamic", "static"):
            cache = make_cache(kind, model)
            assert_close(in_chunks(model, ids, mask, cache)[real], whole[real])
            assert cache.get_seq_length() == T


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", LENGTH_BOUND)
@torch.no_grad()
def test_chunked_equals_transformers_where_frequencies_follow_the_length(case: str, attention: str) -> None:
    pair = make_pair(attention, **ROPES[case])
    ids = random_ids(B, T)
    theirs = in_chunks(pair.theirs, ids, None, transformers.DynamicCache())
    for kind in ("dynamic", "static"):
        assert_close(in_chunks(pair.ours, ids, None, make_cache(kind, pair.ours)), theirs)


@torch.no_grad()
def test_frequencies_that_follow_the_length_have_no_memory() -> None:
    # a long text before must not change the numbers of a short one after it
    for case in LENGTH_BOUND:
        model = make_ours(**ROPES[case])
        short, long = random_ids(1, 10), random_ids(1, 40)
        before = model(short).logits
        model(long)
        assert torch.equal(model(short).logits, before)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_chunks_with_every_position_given(attention: str, kind: str) -> None:
    # as generate() calls forward: positions count real tokens, cache positions count all
    pair = make_pair(attention, num_key_value_heads=2)
    ids, mask = random_ids(B, T), padding_mask(B, T, "left")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    options = {"position_ids": positions, "cache_position": torch.arange(T)}
    theirs = pair.theirs(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    ours = in_chunks(pair.ours, ids, mask, make_cache(kind, pair.ours), **options)
    assert_close(ours[mask.bool()], theirs)


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_static_cache_with_a_mask_over_all_of_it(attention: str) -> None:
    model = make_ours(attention, num_key_value_heads=1)
    ids, room = random_ids(B, T), 20
    mask = padding_mask(B, T, "left")
    whole = model(ids, attention_mask=mask).logits
    # a mask as long as the cache, its end not written yet: ones there must not let a query see zeros
    for tail in (torch.ones(B, room - T), torch.zeros(B, room - T)):
        full = torch.cat([mask, tail.long()], dim=1)
        cache = StaticCache(model.config, max_cache_len=room, max_batch_size=B)
        first = model(ids[:, :5], attention_mask=full, past_key_values=cache).logits
        rest = model(ids[:, 5:], attention_mask=full, past_key_values=cache, cache_position=torch.arange(5, T)).logits
        assert_close(torch.cat([first, rest], dim=1)[mask.bool()], whole[mask.bool()])


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_single_steps_to_the_end_of_a_static_cache(attention: str) -> None:
    model = make_ours(attention, num_key_value_heads=2)
    ids = random_ids(B, T)
    whole = model(ids).logits
    cache = StaticCache(model.config, max_cache_len=T)
    steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(T)]
    assert_close(torch.cat(steps, dim=1), whole)
    with pytest.raises(InputError, match=f"holds {T} positions and {T + 1} are needed"):
        model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_crop_and_go_on(kind: str) -> None:
    model = make_ours(num_key_value_heads=2)
    ids = random_ids(B, T)
    cache = make_cache(kind, model)
    model(torch.cat([ids[:, :7], random_ids(B, 4, seed=4)], dim=1), past_key_values=cache)
    cache.crop(7)
    assert_close(model(ids[:, 7:], past_key_values=cache).logits, model(ids).logits[:, 7:])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_rows_may_be_chosen_and_repeated(kind: str) -> None:
    model = make_ours()
    ids, rows = random_ids(B, T), torch.tensor([2, 0, 0, 1])
    cache = make_cache(kind, model)
    model(ids[:, :8], past_key_values=cache)
    cache.select(rows)
    assert_close(model(ids[rows, 8:], past_key_values=cache).logits, model(ids).logits[rows, 8:])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_a_prompt_is_shared_by_copies(kind: str) -> None:
    model = make_ours()
    prompt, ends = random_ids(1, 6), random_ids(2, 1, 3)
    cache = make_cache(kind, model)
    model(prompt, past_key_values=cache)
    for end in ends:
        fork = copy.deepcopy(cache)
        whole = model(torch.cat([prompt, end], dim=1)).logits[:, 6:]
        assert_close(model(end, past_key_values=fork).logits, whole)
    assert cache.get_seq_length() == 6


@torch.no_grad()
def test_layout_is_that_of_transformers() -> None:
    pair = make_pair("eager", num_key_value_heads=2, use_qk_norm=True)
    ids = random_ids(B, T)
    ours, theirs = pair.ours(ids).past_key_values, pair.theirs(ids).past_key_values
    for layer_idx in range(2):
        keys, values = ours[layer_idx]
        assert keys.shape == (B, 2, T, 8)
        assert_close(keys, theirs[layer_idx][0])
        assert_close(values, theirs[layer_idx][1])


@torch.no_grad()
def test_a_cache_of_tuples_is_refused_and_can_be_converted() -> None:
    model = make_ours()
    ids = random_ids(B, T)
    legacy = model(ids[:, :7]).past_key_values.to_legacy_cache()
    with pytest.raises(InputError, match=r"past_key_values is a builtins.tuple.*DynamicCache.from_legacy_cache"):
        model(ids[:, 7:], past_key_values=legacy)
    cache = DynamicCache.from_legacy_cache(legacy)
    assert_close(model(ids[:, 7:], past_key_values=cache).logits, model(ids).logits[:, 7:])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_a_cache_of_another_batch_is_refused(kind: str) -> None:
    model = make_ours()
    cache = make_cache(kind, model)
    model(random_ids(3, 4), past_key_values=cache)
    for rows in (1, 2):
        with pytest.raises(InputError, match=f"a batch of 3, but the input has {rows}"):
            model(random_ids(rows, 1), past_key_values=cache)


@torch.no_grad()
def test_a_cache_of_another_type_is_refused() -> None:
    model = make_ours().to(torch.bfloat16)
    cache = StaticCache(model.config, max_cache_len=8, max_batch_size=1)  # float32 unless told otherwise
    with pytest.raises(InputError, match=r"torch.float32, but the input is torch.bfloat16"):
        model(random_ids(1, 4), past_key_values=cache)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_modes_may_change_between_steps(kind: str) -> None:
    model = make_ours()
    ids = random_ids(B, T)
    whole = model(ids).logits.detach()
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "enable_grad": torch.enable_grad}
    for order in (("inference_mode", "no_grad"), ("no_grad", "inference_mode"), ("enable_grad", "no_grad")):
        cache, logits = make_cache(kind, model), []
        for (start, end), mode in zip(CHUNKS, [*order, *order], strict=True):
            with modes[mode]():
                logits.append(model(ids[:, start:end], past_key_values=cache).logits.clone())
        with torch.no_grad():
            assert_close(torch.cat([part.detach() for part in logits], dim=1), whole)


def test_gradients_through_a_dynamic_cache_equal_those_of_the_whole() -> None:
    ids = random_ids(2, 8)
    gradients = []
    for parts in ([ids], [ids[:, :3], ids[:, 3:4], ids[:, 4:]]):
        model = make_ours("sdpa", num_key_value_heads=2)
        cache = DynamicCache()
        logits = torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)
        logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected, 1e-4)


# -- places given by a tensor --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_rolled_back_by_cache_position_as_in_transformers(attention: str) -> None:
    # six are stored, the two from place 2 on are written anew; the mask ends behind them
    pair = make_pair(attention, num_key_value_heads=2)
    ids, again, at = random_ids(2, 6), random_ids(2, 2, seed=8), torch.tensor([2, 3])
    for mask in (torch.ones(2, 4).long(), padding_mask(2, 4, "left"), torch.ones(2, 10).long(), None):
        logits = []
        for model, cache in (
            (pair.ours, StaticCache(pair.ours.config, max_cache_len=10)),
            (pair.theirs, transformers.StaticCache(pair.theirs.config, max_cache_len=10)),
        ):
            before = None if mask is None else torch.cat([mask[:, :4], mask[:, -1:].expand(-1, 2)], dim=1)
            start = {"attention_mask": before, "cache_position": torch.arange(6)}
            model(ids, past_key_values=cache, **start)
            logits.append(model(again, attention_mask=mask, past_key_values=cache, cache_position=at).logits)
        assert_close(*logits)
        seen = torch.ones(2, 4).long() if mask is None else mask[:, :4]
        whole = pair.ours(torch.cat([ids[:, :2], again], dim=1), attention_mask=seen).logits[:, 2:]
        real = seen[:, 2:].bool()
        assert_close(logits[0][real], whole[real])


@torch.no_grad()
def test_with_places_a_mask_may_not_be_longer_than_the_cache() -> None:
    model = make_ours()
    cache = StaticCache(model.config, max_cache_len=8)
    with pytest.raises(InputError, match=r"shape \[2, 9\], but must be \[2, 1 to 8\]"):
        model(random_ids(2, 2), attention_mask=torch.ones(2, 9), past_key_values=cache, cache_position=torch.arange(2))


# -- names that other programs know --------------------------------------------------------------------


@pytest.mark.parametrize("side", [None, "left"])
@torch.no_grad()
def test_inputs_of_the_next_step(side: str | None) -> None:
    model = make_ours()
    ids, mask = random_ids(B, T), padding_mask(B, T, side)
    positions = None if mask is None else (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    whole = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    for cache in (DynamicCache(), StaticCache(model.config, max_cache_len=T)):
        for end in (5, 9, T):
            seen = None if mask is None else mask[:, :end]
            inputs = model.prepare_inputs_for_generation(ids[:, :end], past_key_values=cache, attention_mask=seen)
            last = model(**inputs).logits[:, -1]
        assert_close(last, whole)
    embeds = model.get_input_embeddings()(ids)
    inputs = model.prepare_inputs_for_generation(ids, inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    assert inputs["inputs_embeds"] is embeds
    assert "input_ids" not in inputs
    assert_close(model(**inputs).logits[:, -1], whole)
    with pytest.raises(TypeError, match="head_mask"):
        model.prepare_inputs_for_generation(ids, head_mask=None)
