"""Guessing several tokens at once: the answer, and all that is told about it, is that of decoding one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Pair, make_ours
from quarterdeck import DynamicCache, StaticCache
from quarterdeck.generation.assistance import DRAFT_OPTIONS
from quarterdeck.generation.candidates import DraftLength
from speculation_support import SOURCES, Assistants, Counted, Letters, P, assistants, guessing, pair, prompt

__all__ = ["assistants", "pair"]  # fixtures


# ------------------------------------------------------------------------- the same answer

OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 1},
    {"max_new_tokens": 2},
    {"eos_token_id": list(range(7, 30))},
    {"eos_token_id": list(range(7, 60)), "min_new_tokens": 12},
    {"eos_token_id": list(range(7, 60)), "min_length": 15, "pad_token_id": None},
    {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2},
    {"forced_eos_token_id": 7, "suppress_tokens": list(range(8, 30)), "begin_suppress_tokens": list(range(30, 60))},
    {"sequence_bias": {(11,): 6.0, (11, 12): 8.0}, "bad_words_ids": [[40, 41], [50]]},
    {"exponential_decay_length_penalty": (3, 1.3), "eos_token_id": 7},
    {"prefill_chunk_size": 4},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"cache_implementation": "offloaded"},
    {
        "cache_implementation": "quantized",
        "cache_config": {"q_group_size": 8, "residual_length": 4},
        "max_new_tokens": 40,
    },
    {"stop_strings": ["ab", "hc", "kd"], "tokenizer": Letters()},
    {"stop_strings": "f", "tokenizer": Letters()},
    {"prefix_allowed_tokens_fn": lambda row, ids: [int(ids[-1]) * 7 % 99, 3, len(ids)]},
    {"guidance_scale": 1.8},
    {"logits_to_keep": 0},
    {"max_time": 60.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_greedy_is_that_of_one_token_at_a_time(pair: Pair, assistants: Assistants, options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0} | options
    plain = pair.ours.generate(prompt(), **options)
    for source in SOURCES:
        guessed = pair.ours.generate(prompt(), **options, **guessing(source, assistants))
        assert guessed.tolist() == plain.tolist(), source


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded_static", "none"])
def test_every_step_is_that_of_one_token_at_a_time(pair: Pair, assistants: Assistants, source: str, cache: str) -> None:
    """Tokens, scores, logits, attentions, hidden states, and what processors and criteria are asked."""
    asked: list[list[Any]] = [[], []]

    def run(number: int, **options: Any) -> Any:
        def processor(ids: Tensor, scores: Tensor) -> Tensor:
            asked[number].append(ids.tolist())
            return scores + 0.1

        def criterion(ids: Tensor, scores: Any) -> bool:
            asked[number].append([ids.tolist(), len(scores)])
            return False

        kind = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
        return pair.ours.generate(
            prompt(),
            max_new_tokens=20,
            eos_token_id=None,
            logits_processor=[processor],
            stopping_criteria=[criterion],
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            output_attentions=True,
            output_hidden_states=True,
            **kind,
            **options,
        )

    plain, guessed = run(0), run(1, **guessing(source, assistants))
    assert asked[0] == asked[1]
    assert guessed.sequences.tolist() == plain.sequences.tolist()
    for name in ("scores", "logits", "attentions", "hidden_states"):
        ours, theirs = getattr(guessed, name), getattr(plain, name)
        assert len(ours) == len(theirs) == 20
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if cache == "none":
        assert guessed.past_key_values is None
    else:
        assert guessed.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length() == P + 19
        keys = [output.past_key_values[1][0][:, :, : P + 19] for output in (guessed, plain)]
        torch.testing.assert_close(*keys, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "offloaded_static"}, {"use_cache": False}])
def test_steps_of_a_padded_prompt(pair: Pair, assistants: Assistants, cache: dict[str, Any]) -> None:
    """What is seen at real tokens is that of plain decoding; rows of padding mean nothing."""
    ids, mask = prompt(), torch.ones(1, P, dtype=torch.int64)
    mask[0, :3] = 0
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "return_dict_in_generate": True}
    options |= {"attention_mask": mask, "output_attentions": True, "output_hidden_states": True} | cache
    plain = pair.ours.generate(ids, **options)
    for source in ("twin", "near"):
        guessed = pair.ours.generate(ids, **options, **guessing(source, assistants))
        for name, rows in (("attentions", 2), ("hidden_states", 1)):
            for ours, theirs in zip(getattr(guessed, name), getattr(plain, name), strict=True):
                assert [layer.shape for layer in ours] == [layer.shape for layer in theirs]
                first = 3 if ours[0].shape[rows] > 1 else 0  # one row is that of a new token
                for one, other in zip(ours, theirs, strict=True):
                    real = [part.narrow(rows, first, part.shape[rows] - first) for part in (one, other)]
                    torch.testing.assert_close(*real, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [1, 2, 3, 6, 7, 8, 10])
def test_an_answer_may_end_within_a_draft(pair: Pair, assistants: Assistants, stop: int) -> None:
    cache, plain = DynamicCache(), pair.ours.generate(prompt(), max_new_tokens=20, eos_token_id=None)
    ids = pair.ours.generate(
        prompt(),
        max_new_tokens=20,
        eos_token_id=None,
        stopping_criteria=[lambda ids, _: ids.shape[1] == P + stop],
        past_key_values=cache,
        **guessing("twin", assistants),
    )
    assert ids.tolist() == plain[:, : P + stop].tolist()
    assert cache.get_seq_length() == P + stop - 1
    longer = pair.ours.generate(ids, max_new_tokens=20 - stop, eos_token_id=None, past_key_values=cache)
    assert longer.tolist() == plain.tolist()


@pytest.mark.parametrize("taken", [1, 2, 4, 7])
def test_a_loop_that_is_left_leaves_a_cache_without_guesses(pair: Pair, assistants: Assistants, taken: int) -> None:
    cache = StaticCache(pair.ours.config, 64)
    steps = pair.ours.generate_steps(
        prompt(), max_new_tokens=20, eos_token_id=None, past_key_values=cache, **guessing("twin", assistants)
    )
    for _ in range(taken):
        ids = next(steps).input_ids
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert cache.get_seq_length() == ids.shape[1] - 1 == P + taken - 1


def test_a_streamer_gets_one_token_after_the_other(pair: Pair, assistants: Assistants) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def put(self, value: Tensor) -> None:
            self.seen.append(value.tolist())

        def end(self) -> None:
            self.seen.append("end")

    plain, guessed = Recorder(), Recorder()
    pair.ours.generate(prompt(), max_new_tokens=15, eos_token_id=None, streamer=plain)
    pair.ours.generate(prompt(), max_new_tokens=15, streamer=guessed, eos_token_id=None, **guessing("near", assistants))
    assert guessed.seen == plain.seen
    assert len(plain.seen) == 17


def test_prompts_may_be_padded_and_begun(pair: Pair, assistants: Assistants) -> None:
    ids = prompt()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 20, "eos_token_id": None}
    plain = pair.ours.generate(ids, **options)
    for source in SOURCES:
        begun = DynamicCache()
        pair.ours(
            ids[:, :4], attention_mask=mask[:, :4], past_key_values=begun, position_ids=torch.tensor([[0, 0, 0, 0]])
        )
        more = guessing(source, assistants)
        assert pair.ours.generate(ids, past_key_values=begun, **options, **more).tolist() == plain.tolist()


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_positions_beyond_the_trained_length_are_not_guessed(scaling: str) -> None:
    """There a run over several positions has other frequencies than single ones."""
    ropes: dict[str, Any] = {
        "dynamic": {"rope_type": "dynamic", "factor": 4.0},
        "longrope": {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0, 3.0, 4.0, 9.0],
        },
    }
    model = make_ours(rope_scaling=ropes[scaling], max_position_embeddings=16)
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": None}
    plain = model.generate(prompt(), **options)
    with Counted(model) as counted:
        guessed = model.generate(prompt(), **options, prompt_lookup_num_tokens=8)
    assert guessed.tolist() == plain.tolist()
    assert counted.runs >= 30 - (16 - P)


# ------------------------------------------------------------------------- fewer runs of the model


def test_a_twin_saves_most_runs_of_the_model(pair: Pair, assistants: Assistants) -> None:
    """21 tokens: one from the prompt, then 5 guesses and one more at each run, but for the last that is left."""
    with Counted(pair.ours) as plain:
        pair.ours.generate(prompt(), max_new_tokens=21, eos_token_id=None)
    with Counted(pair.ours) as guessed, Counted(assistants["twin"]) as drafted:
        pair.ours.generate(prompt(), max_new_tokens=21, eos_token_id=None, **guessing("twin", assistants))
    assert plain.runs == 21
    assert guessed.runs == 1 + math.ceil(20 / 6)
    assert drafted.runs == 1 + 3 * 5 + 1


def test_drafts_end_with_a_token_that_the_assistant_doubts(pair: Pair, assistants: Assistants) -> None:
    runs = []
    for threshold in (0.0, 1.0):
        more = guessing("twin", assistants) | {"assistant_confidence_threshold": threshold}
        with Counted(pair.ours) as counted:
            pair.ours.generate(prompt(), max_new_tokens=21, eos_token_id=None, **more)
        runs.append(counted.runs)
    assert runs == [5, 11]  # of one token each: every run gives two


def test_nothing_is_drafted_beyond_the_assistants_context(pair: Pair) -> None:
    small = make_ours(max_position_embeddings=12)
    with Counted(small) as counted:
        ids = pair.ours.generate(prompt(), max_new_tokens=20, eos_token_id=None, assistant_model=small)
    assert ids.tolist() == pair.ours.generate(prompt(), max_new_tokens=20, eos_token_id=None).tolist()
    assert 1 <= counted.runs <= 4


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [("constant", [5, 5, 5, 5]), ("heuristic", [5, 7, 6, 6]), ("heuristic_transient", [5, 7, 6, 6])],
)
def test_the_length_of_drafts_follows_their_success(schedule: Any, counts: list[int]) -> None:
    length = DraftLength(5, schedule)
    seen = [length.count]
    for proposed, accepted in ((5, 5), (7, 3), (0, 0)):
        length.learn(proposed, accepted)
        seen.append(length.count)
    assert seen == counts
    for _ in range(20):
        length.learn(length.count, 0)
    assert length.count == (5 if schedule == "constant" else 1)


def test_what_the_heuristic_learnt_is_kept_by_the_assistant(pair: Pair, assistants: Assistants) -> None:
    twin = assistants["twin"]
    config = twin.generation_config
    assert config is not None
    config.update(num_assistant_tokens=3, assistant_confidence_threshold=0.0)
    try:
        for schedule, after in (("heuristic_transient", 3), ("heuristic", 7), ("constant", 7), ("heuristic", 9)):
            config.num_assistant_tokens_schedule = schedule
            pair.ours.generate(prompt(), max_new_tokens=12, eos_token_id=None, assistant_model=twin)
            assert config.num_assistant_tokens == after
    finally:
        config.update(num_assistant_tokens=20, num_assistant_tokens_schedule="constant")
        config.update(assistant_confidence_threshold=0.4)


def test_what_a_call_says_counts_even_if_it_is_the_default(pair: Pair, assistants: Assistants) -> None:
    """Options of the call, then the assistant's own; the defaults are 20 tokens, 0.4 and "constant"."""
    twin = assistants["twin"]
    config = twin.generation_config
    assert config is not None
    kept = {name: getattr(config, name) for name in DRAFT_OPTIONS}
    config.update(num_assistant_tokens=2, num_assistant_tokens_schedule="heuristic", assistant_confidence_threshold=1.0)
    options: dict[str, Any] = {"max_new_tokens": 22, "eos_token_id": None, "assistant_model": twin}

    def runs(**more: Any) -> tuple[int, int | None]:
        """Of the model, and what the assistant has learnt."""
        config.num_assistant_tokens = 2
        with Counted(pair.ours) as counted:
            pair.ours.generate(prompt(), **options, **more)
        return counted.runs, config.num_assistant_tokens

    sure = {"assistant_confidence_threshold": 0.0}
    try:
        assert runs() == runs(num_assistant_tokens=None) == (12, 22)  # it doubts all: two tokens per run
        assert runs(**sure) == (5, 8)  # 2, 4 and 6 guesses, and what is left
        assert runs(**sure, num_assistant_tokens=20) == (2, 20)
        assert runs(**sure, num_assistant_tokens_schedule="constant") == (8, 2)
        config.assistant_confidence_threshold = 0.0
        assert runs(num_assistant_tokens=20)[0] == 2
        assert runs(num_assistant_tokens=20, assistant_confidence_threshold=0.4)[0] > 2
    finally:
        config.update(**kept)


# ------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("source", ["twin", "near", "far"])
def test_as_in_transformers(pair: Pair, assistants: Assistants, source: str) -> None:
    import transformers

    ours = assistants[source]
    theirs = transformers.CohereForCausalLM(transformers.CohereConfig(**ours.config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.generation_config.num_assistant_tokens = 5
    theirs.generation_config.assistant_confidence_threshold = 0.0
    options: dict[str, Any] = {
        "max_new_tokens": 20,
        "eos_token_id": 7,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
    }
    pair.theirs.set_attn_implementation("eager")
    expected = pair.theirs.generate(prompt(), assistant_model=theirs, **options)
    found = pair.ours.generate(prompt(), **guessing(source, assistants), **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
    for name in (
        "attentions",
        "hidden_states",
    ):  # their values are checked above; those of transformers are of other rows
        mine, other = getattr(found, name), getattr(expected, name)
        assert [[tuple(layer.shape) for layer in step] for step in mine] == [
            [tuple(layer.shape) for layer in step] for step in other
        ]
    assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
