"""generate() and generate_steps(): arguments, limits, custom processors, and the loop beneath."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quarterdeck.cache import DynamicCache, StaticCache
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import Forward, last_logits
from quarterdeck.generation.inputs import Prompt, make_prompt
from quarterdeck.generation.processors import LogitsProcessorList, MinLengthLogitsProcessor
from quarterdeck.model import CohereForCausalLM

CONTEXT = 32


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=5,
        eos_token_id=None,
    )
    return CohereForCausalLM(config).eval()


def prompt(rows: int = 2, tokens: int = 6) -> Tensor:
    return torch.randint(8, 50, (rows, tokens), generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------- steps


def test_steps_are_what_generate_returns(model: CohereForCausalLM) -> None:
    options: dict[str, Any] = {"max_new_tokens": 7, "repetition_penalty": 1.3}
    whole = model.generate(prompt(), return_dict_in_generate=True, output_scores=True, output_logits=True, **options)
    steps = list(model.generate_steps(prompt(), **options))
    assert torch.stack([step.tokens for step in steps], dim=1).equal(whole.sequences[:, 6:])
    assert [step.finished.tolist() for step in steps] == [[False, False]] * 6 + [[True, True]]
    for number, (step, scores, logits) in enumerate(zip(steps, whole.scores, whole.logits, strict=True)):
        assert step.input_ids.equal(whole.sequences[:, : 7 + number])
        assert step.scores.equal(scores)
        assert step.logits.equal(logits)
        assert not step.scores.requires_grad
        assert step.past_key_values is steps[0].past_key_values


def test_steps_check_at_once_and_run_on_demand(model: CohereForCausalLM) -> None:
    with pytest.raises(InputError, match="top_p"):
        model.generate_steps(prompt(), top_p=3)
    cache = DynamicCache()
    steps = model.generate_steps(prompt(), past_key_values=cache, max_new_tokens=7)
    assert cache.get_seq_length() == 0
    next(steps)
    assert cache.get_seq_length() == 6
    assert torch.is_grad_enabled()
    next(steps)
    assert cache.get_seq_length() == 7
    steps.close()


def test_feeding_several_tokens_equals_feeding_one_by_one(model: CohereForCausalLM) -> None:
    """The seam for speculative decoding: N tokens per run, with padding, with and without a cache."""
    ids = prompt(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    begin = make_prompt(ids[:, :6], {"attention_mask": mask[:, :6]}, device=model.device, bos=None, pad=None, eos=())
    with torch.no_grad():
        for make in (DynamicCache, lambda: None):
            single, several = (Forward(model, begin, make(), room=9) for _ in range(2))
            single.prefill(None, 1)
            several.prefill(None if several.cache is None else 2, 1)
            outputs = [single.step(ids[:, i : i + 1]) for i in (6, 7, 8)]
            torch.testing.assert_close(last_logits(several.step(ids[:, 6:9])), last_logits(outputs[-1]))


# ---------------------------------------------------------------------------------- processors


def test_a_processor_of_the_caller_runs_before_the_warpers(model: CohereForCausalLM) -> None:
    seen: list[Tensor] = []

    def look(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores)
        return scores

    output = model.generate(
        prompt(),
        logits_processor=[look],
        do_sample=True,
        top_k=2,
        suppress_tokens=[9],
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert seen[0][:, 9].tolist() == [-torch.inf] * 2
    assert int((seen[0] == -torch.inf).sum()) == 2
    assert int((output.scores[0] > -torch.inf).sum()) == 4


def test_a_processor_may_write_into_its_argument(model: CohereForCausalLM) -> None:
    def only_nine(ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, :9] = scores[:, 10:] = -torch.inf
        return scores

    output = model.generate(
        prompt(),
        logits_processor=LogitsProcessorList([only_nine]),
        max_new_tokens=2,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert output.sequences[:, 6:].tolist() == [[9, 9], [9, 9]]
    assert bool(output.logits[0].isfinite().all())


def test_a_processor_replaces_the_one_of_its_class(model: CohereForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": list(range(1, 50)), "min_length": 9}
    assert model.generate(prompt(1), **options).shape[1] == 10
    own = MinLengthLogitsProcessor(11, list(range(1, 50)))
    assert model.generate(prompt(1), logits_processor=[own], **options).shape[1] == 12
    assert "MinLengthLogitsProcessor" in caplog.text


def test_logit_bias(model: CohereForCausalLM) -> None:
    free = model.generate(prompt(1), max_new_tokens=5)
    assert model.generate(prompt(1), max_new_tokens=5, logit_bias={11: 100.0})[0, 6:].tolist() == [11] * 5
    banned = dict.fromkeys(free[0, 6:].tolist(), -100.0)
    assert not set(banned) & set(model.generate(prompt(1), max_new_tokens=5, logit_bias=banned)[0, 6:].tolist())


# ---------------------------------------------------------------------------------- limits


def test_twenty_new_tokens_by_default_and_never_beyond_the_context(model: CohereForCausalLM) -> None:
    assert model.generate(prompt(1, 4)).shape[1] == 24
    assert model.generate(prompt(1, 20)).shape[1] == CONTEXT
    assert model.generate(prompt(1, 31)).shape[1] == CONTEXT
    assert model.generate(prompt(1, 4), max_length=20).shape[1] == 20
    assert model.generate(prompt(1, 4), GenerationConfig(max_length=20)).shape[1] == 24
    assert model.generate(inputs_embeds=model.get_input_embeddings()(prompt(1, 4))).shape[1] == 20


@pytest.mark.parametrize(
    ("tokens", "options", "words"),
    [
        (CONTEXT, {}, "at most 31"),
        (CONTEXT + 5, {"max_new_tokens": 1}, "at most 31"),
        (30, {"max_new_tokens": 3}, "max_new_tokens to at most 2"),
        (3, {"max_length": CONTEXT + 1}, "max_new_tokens to at most 29"),
        (6, {"max_length": 6}, "max_length=6"),
        (6, {"max_length": 2}, "max_length=2"),
    ],
)
def test_lengths_beyond_a_limit(model: CohereForCausalLM, tokens: int, options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.generate(prompt(1, tokens), **options)


def test_the_context_may_be_filled_to_the_last_token(model: CohereForCausalLM) -> None:
    assert model.generate(prompt(1, 30), max_new_tokens=2).shape[1] == CONTEXT
    assert model.generate(prompt(1, 3), max_length=CONTEXT, cache_implementation="static").shape[1] == CONTEXT


def test_an_impossible_minimum_is_told(model: CohereForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    model.generate(prompt(1), max_new_tokens=2, min_new_tokens=5)
    assert "at least 11" in caplog.text


# ---------------------------------------------------------------------------------- inputs

EMBEDS = torch.zeros(2, 3, 16)
WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"inputs": prompt(), "input_ids": prompt()}, "given twice"),
    ({"inputs": [[1, 2]]}, "must be a tensor, not list"),
    ({"inputs": prompt()[0]}, r"\[batch, tokens\]"),
    ({"inputs": prompt().float()}, "float32"),
    ({"inputs": prompt()[:0]}, "no rows"),
    ({"inputs": prompt()[:, :0]}, "no tokens"),
    ({"inputs": prompt().to("meta")}, "meta"),
    ({"inputs": prompt(), "attention_mask": torch.ones(2, 5)}, r"\[2, 6\]"),
    ({"inputs": prompt(), "attention_mask": torch.ones(2, 1, 6, 6)}, r"\[2, 6\]"),
    ({"inputs": prompt(), "position_ids": torch.ones(2, 5)}, "position_ids"),
    ({"inputs_embeds": EMBEDS[0]}, "inputs_embeds"),
    ({"inputs": prompt(3), "inputs_embeds": EMBEDS}, "2 rows and input_ids 3"),
    ({"inputs": prompt(), "past_key_values": ()}, "must be a quarterdeck.Cache"),
    ({"inputs": prompt(), "logits_to_keep": -1}, "logits_to_keep"),
    ({"inputs": prompt(), "prefill_chunk_size": 2, "use_cache": False}, "prefill_chunk_size"),
    ({"inputs": prompt(), "past_key_values": DynamicCache(), "use_cache": False}, "use_cache"),
    ({"inputs": prompt(), "past_key_values": DynamicCache(), "cache_implementation": "static"}, "drop one"),
    ({"inputs": prompt(), "exponential_decay_length_penalty": (1, 2.0)}, "eos_token_id"),
    ({"inputs": prompt(), "bos_token_id": 3, "logit_bias": {50: 1.0}}, "outside the vocabulary"),
    ({"bos_token_id": None}, "bos_token_id"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_INPUTS)
def test_inputs_that_cannot_be_right(model: CohereForCausalLM, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.generate(**arguments, max_new_tokens=2)


def test_a_cache_that_does_not_fit(model: CohereForCausalLM) -> None:
    cache = DynamicCache()
    model.generate(prompt(), past_key_values=cache, max_new_tokens=3)
    with pytest.raises(InputError, match=r"8 positions .* only 6.*crop\(5\)"):
        model.generate(prompt(), past_key_values=cache, max_new_tokens=3)
    cache.crop(5)
    assert model.generate(prompt(), past_key_values=cache, max_new_tokens=3).shape == (2, 9)
    with pytest.raises(InputError, match="2 rows and the prompt has 1"):
        model.generate(prompt(1, 12), past_key_values=cache)
    with pytest.raises(InputError, match=r"room for 7 positions .* needs 8"):
        model.generate(prompt(), past_key_values=StaticCache(model.config, 7), max_new_tokens=3)


def test_the_end_token_standing_in_for_padding_is_told_once(
    model: CohereForCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    model.generate(prompt(), GenerationConfig(eos_token_id=[9, 3]), use_model_defaults=False, max_new_tokens=1)
    assert "pad_token_id" not in caplog.text  # the model's own is 0
    model.generate(prompt(), eos_token_id=[9, 3], pad_token_id=None, max_new_tokens=1)
    assert caplog.text.count("filled with the end token 9") == 1


def test_several_sequences_into_an_empty_static_cache(model: CohereForCausalLM) -> None:
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 3, "seed": 1}
    cache = StaticCache(model.config, 10, max_batch_size=6)
    assert model.generate(prompt(), past_key_values=cache, **options).equal(model.generate(prompt(), **options))


def test_right_padding_is_told(model: CohereForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    ids = prompt()
    ids[0, -1] = 0
    model.generate(ids, max_new_tokens=1)
    assert "pad on the left" in caplog.text


def test_position_ids_go_on_counting(model: CohereForCausalLM) -> None:
    """Rotary positions are relative: shifted ones give the same tokens, stretched ones do not."""
    ids = prompt()
    whole = model.generate(ids, max_new_tokens=8)
    count = torch.arange(6)[None]
    assert model.generate(ids, position_ids=count + 7, max_new_tokens=8).equal(whole)
    cached = model.generate(ids, position_ids=count * 3, max_new_tokens=8)
    assert not cached.equal(whole)
    assert model.generate(ids, position_ids=count * 3, max_new_tokens=8, use_cache=False).equal(cached)
    assert model.generate(ids, position_ids=count * 3, max_new_tokens=8, prefill_chunk_size=4).equal(cached)


def test_int32_ids_and_bool_masks(model: CohereForCausalLM) -> None:
    ids = prompt()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :2] = False
    expected = model.generate(ids, attention_mask=mask.long(), max_new_tokens=3)
    assert model.generate(ids.int(), attention_mask=mask, max_new_tokens=3).equal(expected)


def test_the_callers_objects_are_left_alone(model: CohereForCausalLM) -> None:
    ids, config = prompt(), GenerationConfig(max_new_tokens=3, min_new_tokens=2)
    model.generate(ids, config, top_k=3)
    assert ids.equal(prompt())
    assert config == GenerationConfig(max_new_tokens=3, min_new_tokens=2)
    assert model.generation_config == GenerationConfig.from_model_config(model.config)


def test_the_result_is_an_ordinary_tensor(model: CohereForCausalLM) -> None:
    ids = model.generate(prompt(), max_new_tokens=3)
    assert not ids.is_inference()
    assert ids.is_contiguous()
    assert ids.untyped_storage().nbytes() == ids.numel() * 8
    model(ids, labels=ids).loss.backward()
    model.zero_grad()


def test_logits_that_are_kept_do_not_keep_those_of_the_prompt(model: CohereForCausalLM) -> None:
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}
    all_positions = model.generate(prompt(), logits_to_keep=0, **options)
    assert all_positions.logits[0].untyped_storage().nbytes() == 2 * 50 * 4
    torch.testing.assert_close(all_positions.logits, model.generate(prompt(), **options).logits)


def test_prompts_of_the_dataclass() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    twice = Prompt(ids, mask=torch.tensor([[0, 1], [1, 1]])).repeated(2)
    assert twice.ids.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert twice.mask is not None
    assert twice.mask.tolist() == [[0, 1], [0, 1], [1, 1], [1, 1]]
    assert twice.embeds is None


def test_caches_are_made_as_asked(model: CohereForCausalLM) -> None:
    options: dict[str, Any] = {"return_dict_in_generate": True, "max_new_tokens": 5}
    static = model.generate(prompt(), cache_implementation="static", **options).past_key_values
    assert isinstance(static, StaticCache)
    assert static.layers[0].keys is not None
    assert static.layers[0].keys.shape == (2, 2, 10, 4)
    assert isinstance(model.generate(prompt(), **options).past_key_values, DynamicCache)
    assert model.generate(prompt(), use_cache=False, **options).past_key_values is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_float32_in_half_precision(model: CohereForCausalLM, dtype: torch.dtype) -> None:
    half = CohereForCausalLM(model.config).eval()
    half.load_state_dict(model.state_dict())
    half = half.to(dtype)
    for cache in (None, "static"):
        output = half.generate(
            prompt(),
            max_new_tokens=3,
            cache_implementation=cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert output.scores[0].dtype == torch.float32
        assert output.past_key_values.layers[0].keys.dtype == dtype
