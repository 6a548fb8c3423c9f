"""Arguments that cannot be right are refused with a message that says what, the value, the limit, the remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parity import make_ours, make_pair, random_ids, transformers
from quarterdeck import CohereForCausalLM, DynamicCache, StaticCache
from quarterdeck.errors import InputError, QuarterdeckError, UnsupportedOptionError

IDS = torch.ones(2, 5, dtype=torch.long)
EMBEDS = torch.zeros(2, 5, 32)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> CohereForCausalLM:
    return make_ours(request.param)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, r"exactly one of input_ids or inputs_embeds"),
    "both": ({"input_ids": IDS, "inputs_embeds": EMBEDS}, r"exactly one of input_ids or inputs_embeds"),
    "ids_1d": ({"input_ids": IDS[0]}, r"input_ids must be integers \[B, T\], not torch.int64 \[5\]"),
    "ids_3d": ({"input_ids": IDS[None]}, r"input_ids must be integers \[B, T\], not torch.int64 \[1, 2, 5\]"),
    "ids_empty": ({"input_ids": IDS[:, :0]}, r"input_ids must be integers \[B, T\], not torch.int64 \[2, 0\]"),
    "ids_floating": ({"input_ids": IDS.float()}, r"input_ids must be integers .* not torch.float32 \[2, 5\]"),
    "id_too_large": ({"input_ids": IDS * 99}, r"input_ids go from 99 to 99, but must be in 0 to 98"),
    "id_negative": ({"input_ids": IDS - 3}, r"input_ids go from -2 to -2, but must be in 0 to 98"),
    "embeds_2d": ({"inputs_embeds": EMBEDS[0]}, r"inputs_embeds has shape \[5, 32\], but must be .*32\]"),
    "embeds_width": ({"inputs_embeds": EMBEDS[..., :8]}, r"inputs_embeds has shape \[2, 5, 8\].*, 32\]"),
    "embeds_empty": ({"inputs_embeds": EMBEDS[:, :0]}, r"inputs_embeds has shape \[2, 0, 32\]"),
    "mask_short": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
        r"mask has shape \[2, 4\].*\[2, 5\]",
    ),
    "mask_long": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 6)},
        r"mask has shape \[2, 6\].*\[2, 5\]",
    ),
    "mask_batch": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 5)},
        r"mask has shape \[1, 5\].*\[2, 5\]",
    ),
    "mask_1d": ({"input_ids": IDS, "attention_mask": torch.ones(5)}, r"attention_mask has shape \[5\].*\[2, 5\]"),
    "mask_3d": ({"input_ids": IDS, "attention_mask": torch.ones(2, 5, 5)}, r"shape \[2, 5, 5\].*4-D mask"),
    "mask_4d_queries": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 4, 5)},
        r"4-D attention_mask has shape \[2, 1, 4, 5\], but must be \[2 or 1, 4 or 1, 5, 5\]",
    ),
    "mask_4d_keys": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 4)},
        r"4-D attention_mask has shape \[2, 1, 5, 4\]",
    ),
    "mask_4d_batch": (
        {"input_ids": IDS, "attention_mask": torch.ones(3, 1, 5, 5)},
        r"4-D attention_mask has shape \[3, 1, 5, 5\]",
    ),
    "mask_4d_heads": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 3, 5, 5)},
        r"4-D attention_mask has shape \[2, 3, 5, 5\], but must be \[2 or 1, 4 or 1, 5, 5\]",
    ),
    "mask_list": (
        {"input_ids": IDS, "attention_mask": IDS.tolist()},
        r"attention_mask is a list, but must be a tensor",
    ),
    "mask_dict": ({"input_ids": IDS, "attention_mask": {}}, r"attention_mask is a dict, but must be a tensor"),
    "ids_list": ({"input_ids": IDS.tolist()}, r"input_ids is a list.*return_tensors='pt'"),
    "ids_array": ({"input_ids": IDS.numpy()}, r"input_ids is a ndarray.*return_tensors='pt'"),
    "embeds_list": ({"inputs_embeds": EMBEDS.tolist()}, r"inputs_embeds is a list, but must be a tensor"),
    "positions_list": ({"input_ids": IDS, "position_ids": [[0, 1]]}, r"position_ids is a list, but must be a tensor"),
    "cache_position_list": ({"input_ids": IDS, "cache_position": [0, 1]}, r"cache_position is a list"),
    "cache_position_floating": (
        {"input_ids": IDS, "cache_position": torch.zeros(5)},
        r"cache_position has shape \[5\] and type torch.float32, but must be \[5\] integers",
    ),
    "mask_4d_integers": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 5, dtype=torch.long)},
        r"4-D attention_mask is torch.int64, but must be boolean .*\.bool\(\)",
    ),
    "positions_short": (
        {"input_ids": IDS, "position_ids": torch.zeros(2, 1).long()},
        r"ids has shape \[2, 1\]",
    ),
    "positions_1d": (
        {"input_ids": IDS, "position_ids": torch.arange(5)},
        r"ids has shape \[5\].*\[2 or 1, 5\]",
    ),
    "positions_batch": ({"input_ids": IDS, "position_ids": torch.zeros(3, 5).long()}, r"shape \[3, 5\].*\[2 or 1, 5\]"),
    "cache_position": ({"input_ids": IDS, "cache_position": torch.arange(4)}, r"cache_position has shape \[4\].*\[5\]"),
    "cache_tuple": (
        {"input_ids": IDS, "past_key_values": ()},
        r"past_key_values is a builtins.tuple, but must be a quarterdeck.Cache.*from_legacy_cache\(pairs of",
    ),
    "cache_of_transformers": (
        {"input_ids": IDS, "past_key_values": transformers.DynamicCache()},
        r"is a transformers.cache_utils.DynamicCache, but must be a quarterdeck.Cache; "
        r"quarterdeck.DynamicCache.from_legacy_cache\(past_key_values.to_legacy_cache\(\)\) makes one",
    ),
    "labels_shape": ({"input_ids": IDS, "labels": IDS[:, :4]}, r"labels have shape \[2, 4\], but must be \[2, 5\]"),
    "labels_and_keep": ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, r"leave logits_to_keep at 0"),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_refused(model: CohereForCausalLM, case: str) -> None:
    arguments, message = CASES[case]
    with pytest.raises(InputError, match=message):
        model(**arguments)


@torch.no_grad()
def test_mask_must_cover_the_past(model: CohereForCausalLM) -> None:
    for cache in (DynamicCache(), StaticCache(model.config, max_cache_len=12)):
        model(IDS, past_key_values=cache)
        with pytest.raises(InputError, match=r"attention_mask has shape \[2, 1\], but must be \[2, 6\] \(past and new"):
            model(IDS[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache)
        with pytest.raises(InputError, match=r"attention_mask has shape \[2, 13\], but must be \[2, 6\]"):
            model(IDS[:, :1], attention_mask=torch.ones(2, 13), past_key_values=cache)
        assert cache.get_seq_length() == 5, "a refused call must leave the cache as it was"
        model(IDS[:, :1], attention_mask=torch.ones(2, 6), past_key_values=cache)


@torch.no_grad()
def test_a_static_cache_of_a_shallower_model_is_refused_untouched(model: CohereForCausalLM) -> None:
    for rows in (None, 2):
        cache = StaticCache(make_ours(num_hidden_layers=1).config, max_cache_len=9, max_batch_size=rows)
        with pytest.raises(InputError, match=r"StaticCache has 1 layers and the model at least 2: make it with the"):
            model(IDS, past_key_values=cache)
        assert cache.get_seq_length() == 0
        assert cache[0][0] is None or not cache[0][0].any()


@torch.no_grad()
def test_a_cache_of_transformers_goes_on_as_the_message_says() -> None:
    pair = make_pair("sdpa")
    ids = random_ids(2, 7)
    theirs = pair.theirs(ids[:, :4]).past_key_values
    ours = DynamicCache.from_legacy_cache(theirs.to_legacy_cache())
    with pytest.raises(
        InputError, match=r"is a transformers.cache_utils.DynamicCache, but must be a quarterdeck.Cache"
    ):
        pair.ours.generate(ids, past_key_values=theirs, max_new_tokens=1)
    assert torch.allclose(pair.ours(ids[:, 4:], past_key_values=ours).logits, pair.theirs(ids).logits[:, 4:], atol=1e-5)


def test_unknown_argument_is_refused(model: CohereForCausalLM) -> None:
    with pytest.raises(TypeError, match="head_mask"):
        model(IDS, head_mask=None)


def test_unknown_attention() -> None:
    # where the model is made, or where the name is first used: in any case by name, with what there is
    with pytest.raises(UnsupportedOptionError, match=r"'flash_of_genius'.*eager, sdpa"):
        make_ours("flash_of_genius")(random_ids(1, 3))


def test_errors_are_value_errors_too() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, QuarterdeckError)
