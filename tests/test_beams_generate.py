"""Beams and everything else that generate() takes: caches, embeddings, criteria, processors, streamers, steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterdeck
from parity import Pair, assert_close, make_pair, random_ids
from quarterdeck import (
    CohereForCausalLM,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    pipeline,
)
from quarterdeck.errors import InputError
from quarterdeck.generation.beams import BeamStep
from test_beams import ENDS, EVERYTHING, SPAN, both, check, padded

DIVERSE = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_beams": 4},
    "drawn": {"num_beams": 4, "do_sample": True, "seed": 3},
    "diverse": DIVERSE,
}
SHORT: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": ENDS, "num_return_sequences": 3}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(num_key_value_heads=2, logit_scale=0.1)


@pytest.fixture(scope="module")
def model(pair: Pair) -> CohereForCausalLM:
    return pair.ours


def texts(model: CohereForCausalLM, *args: Any, **options: Any) -> list[list[int]]:
    found = model.generate(*args, **(SHORT | options))
    return (found if isinstance(found, Tensor) else found.sequences).tolist()


# ------------------------------------------------------------------------- the same in transformers


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attentions_and_hidden_states(attention: str) -> None:
    options = {"max_new_tokens": 4, "num_beams": 3, "output_hidden_states": True}
    options["output_attentions"] = attention == "eager"  # as transformers has them
    ours, theirs = both(make_pair(attention), **padded(), **EVERYTHING, **options)
    for name in ("attentions", "hidden_states") if options["output_attentions"] else ("hidden_states",):
        for mine, others in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            for one, other in zip(mine, others, strict=True):
                assert_close(one, other)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "do_sample": True}, DIVERSE])
def test_embeddings(pair: Pair, options: dict[str, Any]) -> None:
    embeds = pair.ours.get_input_embeddings()(random_ids(2, 5)).detach()
    ours, theirs = both(pair, inputs_embeds=embeds, max_new_tokens=7, eos_token_id=ENDS, **EVERYTHING, **options)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=SPAN, atol=SPAN)


def test_criteria_and_processors_of_the_caller(pair: Pair) -> None:
    import transformers

    def is_multiple(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return ids[:, -1] % 9 == 0

    def odd_is_better(ids: Tensor, scores: Tensor) -> Tensor:
        return scores + 0.7 * (torch.arange(scores.shape[1]) % 2) + 0.01 * ids[:, -1:]

    check(
        pair,
        **padded(),
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=9,
        stopping_criteria=transformers.StoppingCriteriaList([is_multiple]),
        logits_processor=transformers.LogitsProcessorList([odd_is_better]),
    )


@pytest.mark.parametrize("options", [{"num_beams": 4}, DIVERSE])
def test_allowed_prefixes(pair: Pair, options: dict[str, Any]) -> None:
    def allowed(row: int, ids: Tensor) -> list[int]:
        return [7, *range(row * 20 + 8, row * 20 + 20)]

    ours, theirs = both(pair, random_ids(3, 4), max_new_tokens=6, prefix_allowed_tokens_fn=allowed, **options)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "do_sample": True, "temperature": 0.6}])
def test_transition_scores(pair: Pair, options: dict[str, Any], normalize: bool) -> None:
    ours, theirs = both(pair, **padded(), **EVERYTHING, **SHORT, length_penalty=0.5, **options)
    mine = pair.ours.compute_transition_scores(ours.sequences, ours.scores, ours.beam_indices, normalize)
    others = pair.theirs.compute_transition_scores(theirs.sequences, theirs.scores, theirs.beam_indices, normalize)
    torch.testing.assert_close(mine, others, rtol=SPAN, atol=5 * SPAN)
    if not normalize:
        length = (ours.beam_indices >= 0).sum(dim=1)
        torch.testing.assert_close(mine.sum(dim=1) / length**0.5, ours.sequences_scores)


# ------------------------------------------------------------------------- the search itself


def test_as_many_beams_as_words_find_the_likeliest_of_all_texts(model: CohereForCausalLM) -> None:
    ids = random_ids(1, 4)
    found = model.generate(ids, num_beams=99, max_new_tokens=2, eos_token_id=None, num_return_sequences=5, **EVERYTHING)
    pairs = torch.tensor(list(itertools.product(range(99), repeat=2)))
    with torch.no_grad():
        logits = model(torch.cat((ids.expand(99, -1), torch.arange(99)[:, None]), dim=1)).logits.log_softmax(dim=-1)
    sums = logits[0, 3, pairs[:, 0]] + logits[pairs[:, 0], 4, pairs[:, 1]]
    best = sums.topk(5)
    assert found.sequences[:, 4:].tolist() == pairs[best.indices].tolist()
    torch.testing.assert_close(found.sequences_scores, best.values / 2)


def test_scores_of_groups_come_from_the_rows_that_are_named(model: CohereForCausalLM) -> None:
    options = SHORT | DIVERSE | {"eos_token_id": 33, "num_return_sequences": 4}
    found = model.generate(**padded(), **EVERYTHING, **options)
    taken = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    length = (found.beam_indices >= 0).sum(dim=1)
    assert len(set(length.tolist())) > 1
    torch.testing.assert_close(taken.sum(dim=1) / length, found.sequences_scores)
    beams = found.beam_indices[found.beam_indices >= 0] % 4
    assert set(beams.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["plain", "diverse"])
def test_a_batch_gives_what_its_rows_give_alone(model: CohereForCausalLM, kind: str) -> None:
    batch = padded()
    together = model.generate(**batch, **EVERYTHING, **SHORT, **KINDS[kind])
    for row in range(3):
        ids = batch["input_ids"][row : row + 1, batch["attention_mask"][row] == 1]
        alone = model.generate(ids, **EVERYTHING, **SHORT, **KINDS[kind])
        mine = slice(3 * row, 3 * row + 3)
        torch.testing.assert_close(together.sequences_scores[mine], alone.sequences_scores, rtol=SPAN, atol=SPAN)
        new = alone.sequences[:, ids.shape[1] :]
        assert together.sequences[mine, 6 : 6 + new.shape[1]].tolist() == new.tolist()


def test_steps_are_the_search_as_it_goes(model: CohereForCausalLM) -> None:
    ids = padded()["input_ids"]
    before = ids.repeat_interleave(4, dim=0)
    steps = []
    for step in model.generate_steps(ids, num_beams=4, max_new_tokens=6, eos_token_id=ENDS):
        assert isinstance(step, BeamStep)
        assert torch.equal(step.input_ids, torch.cat((before[step.parents], step.tokens[:, None]), dim=1))
        before = step.input_ids
        steps.append(step)
    assert bool(steps[-1].finished.all())
    best = steps[-1].best.cropped()
    assert best.ids.flatten(0, 1).tolist() == texts(model, ids, num_beams=4, num_return_sequences=1, max_new_tokens=6)


def test_a_seed_draws_the_same_and_leaves_the_global_source_alone(model: CohereForCausalLM) -> None:
    state = torch.get_rng_state()
    options = {"num_beams": 3, "do_sample": True, "temperature": 2.0}
    first = texts(model, random_ids(2, 5), seed=1, **options)
    assert texts(model, random_ids(2, 5), generator=torch.Generator().manual_seed(1), **options) == first
    assert texts(model, random_ids(2, 5), seed=2, **options) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_stop_strings_and_time_end_the_search() -> None:
    import transformers

    folder = Path(quarterdeck.__file__).parent / "assets/midshipman"
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 12}
    found = []
    for library in (transformers, quarterdeck):
        tokenizer = library.AutoTokenizer.from_pretrained(folder)
        model = library.AutoModelForCausalLM.from_pretrained(folder)
        inputs = tokenizer("Penguins live", return_tensors="pt")
        ids = model.generate(**inputs, **options, stop_strings=["south", "world"], tokenizer=tokenizer)
        found.append(tokenizer.batch_decode(ids, skip_special_tokens=True))
        hurried = model.generate(**inputs, **options, max_time=1e-9)
        assert hurried.shape == (3, inputs["input_ids"].shape[1] + 1)
    assert found[0] == found[1]
    assert any(text.endswith(("southern", "world")) for text in found[1])


def test_a_pipeline_gives_a_record_per_text() -> None:
    generate = pipeline("text-generation", model="midshipman", device=-1)
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    records = generate(["Penguins live", "The sea is"], **options)
    for prompt, found in zip(["Penguins live", "The sea is"], records, strict=True):
        ids = generate.model.generate(**generate.tokenizer(prompt, return_tensors="pt"), **options)
        assert [record["generated_text"] for record in found] == generate.tokenizer.batch_decode(
            ids, skip_special_tokens=True
        )
        assert len(found) == 2


# ------------------------------------------------------------------------- caches


CACHES: dict[str, Callable[[CohereForCausalLM], dict[str, Any]]] = {
    "none": lambda model: {"use_cache": False},
    "static": lambda model: {"cache_implementation": "static"},
    "offloaded": lambda model: {"cache_implementation": "offloaded"},
    "chunks": lambda model: {"prefill_chunk_size": 2},
    "given dynamic": lambda model: {"past_key_values": DynamicCache()},
    "given static": lambda model: {"past_key_values": StaticCache(model.config, 20)},
    "static for rows": lambda model: {"past_key_values": StaticCache(model.config, 20, max_batch_size=3)},
    "static for beams": lambda model: {"past_key_values": StaticCache(model.config, 20, max_batch_size=12)},
    "all logits": lambda model: {"logits_to_keep": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CACHES)
def test_caches_change_nothing(model: CohereForCausalLM, name: str, kind: str) -> None:
    options = KINDS[kind]
    assert texts(model, **padded(), **options, **CACHES[name](model)) == texts(model, **padded(), **options)


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("static", [False, True])
def test_a_cache_that_holds_the_beginning(model: CohereForCausalLM, static: bool, copies: int) -> None:
    ids = random_ids(3, 6)
    cache = StaticCache(model.config, 20) if static else DynamicCache()
    with torch.no_grad():
        model(ids[:, :4].repeat_interleave(copies, dim=0), past_key_values=cache)
    assert texts(model, ids, num_beams=4, past_key_values=cache) == texts(model, ids, num_beams=4)
    with pytest.raises(InputError, match="past_key_values holds 12 rows and the prompt has 3"):
        model.generate(random_ids(3, 16), past_key_values=cache, num_beams=2, max_new_tokens=2)


@pytest.mark.parametrize("cache_kind", ["dynamic", "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_run_once_and_the_cache_is_that_of_the_beams_at_the_end(
    model: CohereForCausalLM, kind: str, cache_kind: str
) -> None:
    shapes = []

    def note(module: object, args: object, arguments: dict[str, Any]) -> None:
        shapes.append(arguments["input_ids"].shape)

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        options = KINDS[kind] | {"max_new_tokens": 4, "eos_token_id": None, "cache_implementation": cache_kind}
        steps = list(model.generate_steps(padded()["input_ids"], **options))
    finally:
        hook.remove()
    assert shapes == [(3, 6), (12, 1), (12, 1), (12, 1)]
    cache, last = steps[-1].past_key_values, steps[-1].input_ids
    fresh = DynamicCache()
    with torch.no_grad():
        model(last[:, :-1], past_key_values=fresh)
    for layer, other in zip(cache.layers, fresh.layers, strict=True):
        assert_close(layer.keys[:, :, :9], other.keys)  # a static one may be longer
        assert_close(layer.values[:, :, :9], other.values)


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0: it must be an integer of 1 or more"),
        ({"num_beams": 2.0}, "num_beams=2.0: it must be an integer"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2.*to 3"),
        ({"num_return_sequences": 3}, "Set do_sample=True, num_beams to as many"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping='always': it must be True, False or 'never'"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping=1: it must be True, False or 'never'"),
        ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty=nan: it must be a number"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beams=4 cannot be divided"),
        ({"num_beams": 4, "num_beam_groups": 2}, "all groups would find the same"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "set num_beam_groups to 2"),
        ({"num_beams": 4, "diversity_penalty": -1.0}, "a number of 0 or more"),
        (DIVERSE | {"do_sample": True}, "groups of beams take the likeliest tokens"),
        ({"num_beams": 2, "force_words_ids": [[3]]}, "force_words_ids.*logits_processor, or a grammar"),
        ({"num_beams": 2, "constraints": [3]}, "constraints.*logits_processor, or a grammar"),
        ({"num_beams": 2, "low_memory": True}, "low_memory=True is refused.*prefill_chunk_size"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6 is refused: contrastive search.*repetition_penalty"),
        ({"dola_layers": "low"}, "dola_layers='low' is refused"),
    ],
)
def test_refused(model: CohereForCausalLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, 3), max_new_tokens=2, **options)


class Silent:
    """A streamer that must not be called."""

    def put(self, value: Tensor) -> None:
        raise AssertionError("called")

    end: Any = put


def test_streamers_are_refused(model: CohereForCausalLM) -> None:
    with pytest.raises(InputError, match=r"streamer cannot be used with num_beams above 1.*generate_steps"):
        model.generate(random_ids(1, 3), num_beams=2, max_new_tokens=2, streamer=Silent())


def test_options_of_beams_without_beams_have_no_effect(
    caplog: pytest.LogCaptureFixture, model: CohereForCausalLM
) -> None:
    config = GenerationConfig(length_penalty=2.0, early_stopping=True, num_beam_groups=2, diversity_penalty=1.0)
    assert set(config.without_effect()) == {"length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"}
    greedy = model.generate(random_ids(1, 3), max_new_tokens=3)
    assert torch.equal(model.generate(random_ids(1, 3), config, max_new_tokens=3), greedy)
    assert "it needs num_beams above 1" in caplog.text


def test_nothing_to_fill_with_is_an_error(model: CohereForCausalLM) -> None:
    ids = random_ids(1, 3)
    bare = {"num_beams": 2, "max_new_tokens": 3, "generation_config": GenerationConfig(), "use_model_defaults": True}
    model = make_pair(pad_token_id=None, eos_token_id=None).ours
    assert model.generate(ids, **bare).shape == (1, 6)
    with pytest.raises(InputError, match="no token is there to fill them with: set pad_token_id"):
        model.generate(ids, stopping_criteria=[lambda *_: False], **bare)


def ban_all_of(prompt: int, count: int) -> Callable[[Tensor, Tensor], Tensor]:
    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        size = scores.shape[0] // count
        rows = torch.arange(len(scores)) // size == prompt
        return scores.masked_fill(rows[:, None] & (ids.shape[1] == 4), -math.inf)

    return processor


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_without_a_token_to_choose_is_an_error(model: CohereForCausalLM, kind: str) -> None:
    ids = random_ids(2, 3)
    options = KINDS[kind] | {"max_new_tokens": 3, "eos_token_id": None}
    with pytest.raises(InputError, match="row 1 has no token to choose at position 4: every one is banned"):
        model.generate(ids, logits_processor=[ban_all_of(1, 2)], **options)
    with pytest.raises(InputError, match="row 0 has no token to choose at position 3: the scores have NaN"):
        model.generate(ids, logits_processor=[lambda _, scores: scores * math.nan], **options)


@pytest.mark.parametrize("kind", ["plain", "drawn"])
def test_a_prompt_whose_texts_have_ended_needs_no_token(model: CohereForCausalLM, kind: str) -> None:
    def end_first(ids: Tensor, scores: Tensor) -> Tensor:
        ended = torch.full_like(scores, -math.inf)
        ended[:, 7] = 0.0
        return torch.where(ids[:, :1] == 8, ended if ids.shape[1] == 3 else torch.full_like(scores, -math.inf), scores)

    ids = torch.tensor([[8, 9, 10], [11, 12, 13]])
    options = KINDS[kind] | {"max_new_tokens": 3, "eos_token_id": 7, "pad_token_id": 2}
    found = model.generate(ids, logits_processor=[end_first], **options)
    assert found[0].tolist() == [8, 9, 10, 7, 2, 2]
