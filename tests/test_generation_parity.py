"""generate() against transformers' generate() on tiny random models with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from quarterdeck.cache import DynamicCache, StaticCache
from quarterdeck.config import CohereConfig
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.model import CohereForCausalLM

FIELDS: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "logit_scale": 0.7,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 7,
}


class Pair:
    """The same model twice, theirs and ours."""

    def __init__(self) -> None:
        from transformers import CohereConfig as TheirConfig
        from transformers import CohereForCausalLM as TheirModel

        torch.manual_seed(0)
        self.theirs = TheirModel(TheirConfig(**FIELDS)).eval()
        self.ours = CohereForCausalLM(CohereConfig(**FIELDS)).eval()
        self.ours.load_state_dict(self.theirs.state_dict(), strict=True)

    def both(self, *args: Any, seed: int = 0, **kwargs: Any) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        theirs = self.theirs.generate(*args, **kwargs)
        torch.manual_seed(seed)
        return self.ours.generate(*args, **kwargs), theirs

    def check(self, *args: Any, seed: int = 0, **kwargs: Any) -> Tensor:
        ours, theirs = self.both(*args, seed=seed, **kwargs)
        assert ours.tolist() == theirs.tolist()
        return ours


@pytest.fixture(scope="module")
def pair() -> Pair:
    pytest.importorskip("transformers")
    return Pair()


def prompt(rows: int = 2, tokens: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(8, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def padded() -> dict[str, Tensor]:
    ids = prompt(3, 9)
    ids[0, :4] = 3  # not the token 0, whose embedding is zero: looking at it would hardly be noticed
    ids[1, :1] = 3
    return {"input_ids": ids, "attention_mask": (ids != 3).long()}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_length": 14},
    {"max_new_tokens": 30},
    {"max_new_tokens": 5, "max_length": 100},
    {"max_new_tokens": 25, "eos_token_id": [7, 20, 33, 41, 58, 60, 71, 80, 95]},
    {"max_new_tokens": 25, "eos_token_id": None},
    {"max_new_tokens": 25, "eos_token_id": list(range(7, 60)), "min_new_tokens": 6},
    {"max_new_tokens": 25, "eos_token_id": list(range(7, 60)), "min_length": 13},
    {"max_new_tokens": 25, "eos_token_id": list(range(7, 60)), "pad_token_id": 3},
    {"max_new_tokens": 20, "repetition_penalty": 1.7},
    {"max_new_tokens": 20, "repetition_penalty": 0.6},
    {"max_new_tokens": 40, "no_repeat_ngram_size": 1},
    {"max_new_tokens": 40, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 20, "bad_words_ids": [[i] for i in range(8, 50)] + [[60, 61], [7]]},
    {"max_new_tokens": 20, "sequence_bias": {(11,): 9.0, (11, 12): 8.0, (40,): -5.0}},
    {"max_new_tokens": 20, "sequence_bias": [[[11], 9.0], [[11, 12], 8.0]]},
    {"max_new_tokens": 20, "suppress_tokens": list(range(1, 60))},
    {"max_new_tokens": 20, "begin_suppress_tokens": list(range(1, 90))},
    {"max_new_tokens": 6, "forced_eos_token_id": 7},
    {"max_new_tokens": 6, "forced_eos_token_id": [7, 9]},
    {"max_new_tokens": 20, "exponential_decay_length_penalty": (3, 1.4)},
    {"max_new_tokens": 8, "remove_invalid_values": True, "renormalize_logits": True},
    {"max_new_tokens": 20, "use_cache": False},
    {"max_new_tokens": 20, "cache_implementation": "static"},
    {"max_new_tokens": 20, "cache_implementation": "dynamic"},
    {"max_new_tokens": 20, "prefill_chunk_size": 1},
    {"max_new_tokens": 20, "prefill_chunk_size": 4},
    {"max_new_tokens": 20, "prefill_chunk_size": 100},
    {"max_new_tokens": 6, "logits_to_keep": 0},
]

SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5, "top_k": 0},
    {"top_k": 3},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": 40, "top_p": 0.9, "temperature": 1.3},
    {"min_p": 0.1, "top_k": 0},
    {"typical_p": 0.4, "top_k": 0},
    {"epsilon_cutoff": 0.02},
    {"eta_cutoff": 0.02},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.98},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "temperature": 1.5},
    {"renormalize_logits": True, "top_p": 0.8},
    {"num_return_sequences": 3},
    {"num_return_sequences": 2, "cache_implementation": "static"},
    {"eos_token_id": list(range(7, 30))},
]


def label(options: dict[str, Any]) -> str:
    return ",".join(options) or "default"


# transformers gives left-padded rows wrong positions when it prefills in chunks; see the chunk test below
PADDED_OPTIONS = [options for options in OPTIONS if "prefill_chunk_size" not in options]


@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_greedy_ids_are_equal(pair: Pair, options: dict[str, Any]) -> None:
    pair.check(prompt(), **options)


@pytest.mark.parametrize("options", PADDED_OPTIONS, ids=label)
def test_greedy_ids_of_padded_rows_are_equal(pair: Pair, options: dict[str, Any]) -> None:
    pair.check(**padded(), **options)


@pytest.mark.parametrize("options", SAMPLING, ids=label)
@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
def test_sampled_ids_are_equal_for_the_same_seed(pair: Pair, options: dict[str, Any], padding: bool) -> None:
    inputs = padded() if padding else {"input_ids": prompt()}
    seen = set()
    for seed in range(2):
        ids = pair.check(**inputs, **options, seed=seed, do_sample=True, max_new_tokens=8)
        seen.add(str(ids.tolist()))
    assert len(seen) > 1


def test_chunks_of_padded_rows_equal_the_whole(pair: Pair) -> None:
    whole = pair.ours.generate(**padded(), max_new_tokens=15)
    for chunk in (1, 2, 3, 8, 9, 20):
        assert pair.ours.generate(**padded(), max_new_tokens=15, prefill_chunk_size=chunk).equal(whole)


@pytest.mark.parametrize("cache", [None, "static"])
def test_rows_of_a_batch_equal_each_alone(pair: Pair, cache: str | None) -> None:
    batch = padded()
    together = pair.ours.generate(**batch, max_new_tokens=12, eos_token_id=None, cache_implementation=cache)
    for row, start in enumerate((4, 1, 0)):
        alone = pair.ours.generate(batch["input_ids"][row : row + 1, start:], max_new_tokens=12, eos_token_id=None)
        assert together[row, 9:].tolist() == alone[0, 9 - start :].tolist()


def test_padding_is_inferred_from_pad_tokens(pair: Pair) -> None:
    inputs = padded()
    inferred = pair.check(inputs["input_ids"], max_new_tokens=10, pad_token_id=3)
    assert inferred.equal(pair.ours.generate(**inputs, max_new_tokens=10, pad_token_id=3))
    assert not inferred.equal(pair.check(inputs["input_ids"], attention_mask=torch.ones(3, 9), max_new_tokens=10))


def test_padding_is_not_inferred_when_pad_is_an_end_token(pair: Pair) -> None:
    ids = padded()["input_ids"]
    kept = pair.check(ids, max_new_tokens=10, pad_token_id=3, eos_token_id=[3, 7])
    assert not kept.equal(pair.check(ids, max_new_tokens=10, pad_token_id=3, eos_token_id=[7]))


def test_right_padding_follows_transformers(pair: Pair) -> None:
    ids = prompt()
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    pair.check(ids, attention_mask=mask, max_new_tokens=8)


def test_no_prompt_begins_with_bos(pair: Pair) -> None:
    assert pair.check(max_new_tokens=6)[0, 0] == 5
    pair.check(max_new_tokens=6, forced_bos_token_id=11, begin_suppress_tokens=list(range(1, 90)))
    pair.check(max_new_tokens=4, attention_mask=torch.ones(3, 1, dtype=torch.int64))


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=label)
def test_embeddings(pair: Pair, options: dict[str, Any]) -> None:
    ids = prompt()
    embeds = pair.theirs.get_input_embeddings()(ids).detach()
    new = pair.check(inputs_embeds=embeds, max_new_tokens=9, **options)
    assert new.shape == (2, 9)
    assert pair.ours.generate(ids, max_new_tokens=9)[:, 9:].equal(new)
    with_ids = pair.check(ids, inputs_embeds=embeds, max_new_tokens=9, **options)
    assert with_ids[:, 9:].equal(new)
    pair.check(inputs_embeds=embeds, max_length=14, **options)
    pair.check(inputs_embeds=embeds, max_length=14, min_length=11, eos_token_id=list(range(1, 97)), **options)


def test_embeddings_of_padded_rows(pair: Pair) -> None:
    inputs = padded()
    embeds = pair.theirs.get_input_embeddings()(inputs["input_ids"]).detach()
    pair.check(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=9)


def their_cache() -> Any:
    from transformers import DynamicCache as TheirCache

    return TheirCache()


CACHES: list[Callable[[Pair], Any]] = [
    lambda pair: DynamicCache(),
    lambda pair: StaticCache(pair.ours.config, max_cache_len=40),
]


@pytest.mark.parametrize("make", CACHES, ids=["dynamic", "static"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_continuing_from_a_cache(pair: Pair, make: Callable[[Pair], Any], chunk: int | None) -> None:
    ids = prompt()
    whole = pair.ours.generate(ids, max_new_tokens=12)
    cache = make(pair)
    first = pair.ours.generate(ids, max_new_tokens=5, past_key_values=cache)
    assert cache.get_seq_length() == 13
    second = pair.ours.generate(first, max_new_tokens=7, past_key_values=cache, prefill_chunk_size=chunk)
    assert second.equal(whole)

    theirs = their_cache()
    pair.theirs.generate(ids, max_new_tokens=5, past_key_values=theirs)
    longer = torch.cat((first, prompt(2, 4, seed=9)), dim=1)  # more than one token that is not in the cache
    expected = pair.theirs.generate(longer, max_new_tokens=7, past_key_values=theirs)
    cache = make(pair)
    pair.ours.generate(ids, max_new_tokens=5, past_key_values=cache)
    ours = pair.ours.generate(longer, max_new_tokens=7, past_key_values=cache, prefill_chunk_size=chunk)
    assert ours.equal(expected)


def test_continuing_padded_rows_from_a_cache(pair: Pair) -> None:
    inputs = padded()
    whole = pair.ours.generate(**inputs, max_new_tokens=12)
    cache = DynamicCache()
    first = pair.ours.generate(**inputs, max_new_tokens=5, past_key_values=cache)
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 5, dtype=torch.int64)), dim=1)
    assert pair.ours.generate(first, attention_mask=mask, max_new_tokens=7, past_key_values=cache).equal(whole)


def test_continuing_embeddings_from_a_cache(pair: Pair) -> None:
    ids = prompt()
    embed = pair.ours.get_input_embeddings()
    embeds = embed(ids).detach()
    whole = pair.ours.generate(inputs_embeds=embeds, max_new_tokens=8)
    cache = DynamicCache()
    first = pair.ours.generate(inputs_embeds=embeds, max_new_tokens=3, past_key_values=cache)
    longer = torch.cat((embeds, embed(first).detach()), dim=1)
    second = pair.ours.generate(inputs_embeds=longer, max_new_tokens=5, past_key_values=cache)
    assert torch.cat((first, second), dim=1).equal(whole)


def test_several_sequences_continue_from_one_cache(pair: Pair) -> None:
    ids = prompt()
    cache = DynamicCache()
    first = pair.ours.generate(ids, max_new_tokens=3, past_key_values=cache)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    torch.manual_seed(4)
    continued = pair.ours.generate(first, past_key_values=cache, **options)
    torch.manual_seed(4)
    assert continued.equal(pair.ours.generate(first, **options))


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_scores_and_logits_are_equal(pair: Pair, sample: bool, padding: bool) -> None:
    inputs = padded() if padding else {"input_ids": prompt()}
    ours, theirs = pair.both(
        **inputs,
        do_sample=sample,
        temperature=0.7 if sample else None,
        repetition_penalty=1.3,
        bad_words_ids=[[9]],
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert ours.sequences.equal(theirs.sequences)
    assert len(ours.scores) == len(theirs.scores) == len(ours.logits) == 8
    for mine, other in zip(ours.scores + ours.logits, theirs.scores + theirs.logits, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert not ours.scores[0].equal(ours.logits[0])
    assert ours.past_key_values.get_seq_length() == ours.sequences.shape[1] - 1


@pytest.mark.parametrize("use_cache", [True, False])
def test_attentions_and_hidden_states_are_equal(pair: Pair, use_cache: bool) -> None:
    pair.theirs.set_attn_implementation("eager")
    try:
        ours, theirs = pair.both(
            prompt(),
            max_new_tokens=4,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_attentions=True,
            output_hidden_states=True,
        )
    finally:
        pair.theirs.set_attn_implementation("sdpa")
    assert list(ours) == [key for key in theirs if use_cache or key != "past_key_values"]
    for name in ("attentions", "hidden_states"):
        assert len(ours[name]) == len(theirs[name]) == 4
        for mine, other in zip(ours[name], theirs[name], strict=True):
            for layer, their_layer in zip(mine, other, strict=True):
                torch.testing.assert_close(layer, their_layer, atol=1e-5, rtol=1e-5)


def test_options_come_from_config_call_and_model(pair: Pair) -> None:
    from transformers import GenerationConfig as TheirConfig

    saved = pair.theirs.generation_config, pair.ours.generation_config
    fields = {"bos_token_id": 5, "eos_token_id": 7, "pad_token_id": 0}
    pair.theirs.generation_config = TheirConfig(**fields, max_new_tokens=11, repetition_penalty=1.5)
    pair.ours.generation_config = GenerationConfig(**fields, max_new_tokens=11, repetition_penalty=1.5)
    try:
        for options in ({}, {"max_new_tokens": 4}, {"no_repeat_ngram_size": 1}):
            for extra in ({}, {"max_new_tokens": 6}):
                expected = pair.theirs.generate(prompt(), generation_config=TheirConfig(**options), **extra)
                ours = pair.ours.generate(prompt(), generation_config=GenerationConfig(**options), **extra)
                assert ours.tolist() == expected.tolist()
        assert pair.ours.generate(prompt()).shape[1] == 20
        lone = pair.ours.generate(prompt(), GenerationConfig(max_length=12), use_model_defaults=False)
        assert lone.shape[1] == 12
    finally:
        pair.theirs.generation_config, pair.ours.generation_config = saved


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sample", [False, True])
def test_transition_scores(pair: Pair, sample: bool, normalize: bool) -> None:
    ours, theirs = pair.both(
        prompt(), max_new_tokens=8, do_sample=sample, return_dict_in_generate=True, output_scores=True
    )
    assert ours.sequences.equal(theirs.sequences)
    torch.testing.assert_close(
        pair.ours.compute_transition_scores(ours.sequences, ours.scores, normalize_logits=normalize),
        pair.theirs.compute_transition_scores(theirs.sequences, theirs.scores, normalize_logits=normalize),
    )
