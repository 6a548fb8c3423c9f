"""Beam search against transformers on tiny random models: ids, scores, where each token came from."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Pair, make_pair, random_ids

transformers = pytest.importorskip("transformers", reason="the peer that results are compared with")

EVERYTHING = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
SPAN = 1e-5
ENDS = [7, 20, 33, 41, 58]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Flat enough for several tokens to be likely, and for end tokens to come in a few steps."""
    return make_pair(num_key_value_heads=2, logit_scale=0.1)


def padded(rows: int = 3, length: int = 6) -> dict[str, Tensor]:
    ids = random_ids(rows, length, seed=4)
    mask = torch.arange(length) >= torch.arange(rows)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def assert_same(ours: Any, theirs: Any) -> None:
    """Outputs with `EVERYTHING` are equal: whole numbers exactly, scores up to `SPAN`."""
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.beam_indices.tolist() == theirs.beam_indices.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=SPAN, atol=SPAN)
    for name in ("scores", "logits"):
        mine, others = getattr(ours, name), getattr(theirs, name)
        assert len(mine) == len(others)
        for one, other in zip(mine, others, strict=True):
            torch.testing.assert_close(one, other, rtol=SPAN, atol=5 * SPAN)


def both(pair: Pair, *args: Any, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    theirs = pair.theirs.generate(*args, **options)
    torch.manual_seed(seed)
    return pair.ours.generate(*args, **options), theirs


def check(pair: Pair, *args: Any, seed: int = 0, **options: Any) -> Any:
    ours, theirs = both(pair, *args, seed=seed, **(EVERYTHING | options))
    assert_same(ours, theirs)
    return ours


OPTIONS: dict[str, dict[str, Any]] = {
    "two": {"num_beams": 2},
    "four": {"num_beams": 4, "num_return_sequences": 4},
    "one end of many": {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": ENDS},
    "stop early": {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "eos_token_id": ENDS},
    "never early": {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "eos_token_id": ENDS},
    "long texts": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 3.0, "eos_token_id": ENDS},
    "long, never": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "eos_token_id": ENDS},
    "short texts": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -2.0, "eos_token_id": ENDS},
    "no penalty": {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never", "eos_token_id": ENDS},
    "least length": {"num_beams": 3, "min_new_tokens": 5, "eos_token_id": ENDS},
    "least length in all": {"num_beams": 3, "min_length": 10, "eos_token_id": ENDS},
    "no end": {"num_beams": 3, "eos_token_id": None, "pad_token_id": 0},
    "padding": {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": ENDS, "pad_token_id": 11},
    "one token": {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 1},
    "penalties": {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "bans": {"num_beams": 3, "bad_words_ids": [[8, 9], [30]], "suppress_tokens": [12], "begin_suppress_tokens": [40]},
    "biases": {"num_beams": 3, "sequence_bias": {(3,): 4.0, (3, 4): -3.0}, "renormalize_logits": True},
    "forced end": {"num_beams": 3, "num_return_sequences": 2, "forced_eos_token_id": 7},
    "decay": {"num_beams": 3, "exponential_decay_length_penalty": (2, 1.3), "eos_token_id": ENDS},
    "words": {"num_beams": 50, "num_return_sequences": 3},
    "without cache": {"num_beams": 3, "use_cache": False, "eos_token_id": ENDS},
    "static cache": {"num_beams": 3, "cache_implementation": "static", "eos_token_id": ENDS},
}
DRAWS: dict[str, dict[str, Any]] = {
    "plain": {"num_beams": 3, "top_k": 0},
    "hot": {"num_beams": 4, "num_return_sequences": 4, "temperature": 1.7, "eos_token_id": ENDS},
    "cold": {"num_beams": 3, "temperature": 0.3, "top_k": 0, "early_stopping": True, "eos_token_id": ENDS},
    "few": {"num_beams": 3, "top_k": 1, "eos_token_id": ENDS[:2]},
    "nucleus": {"num_beams": 3, "top_k": 0, "top_p": 0.3, "eos_token_id": ENDS},
    "least": {"num_beams": 3, "top_k": 0, "min_p": 0.9, "eos_token_id": ENDS},
    "typical": {"num_beams": 3, "top_k": 0, "typical_p": 0.2, "eos_token_id": None, "pad_token_id": 0},
    "epsilon": {"num_beams": 3, "top_k": 0, "epsilon_cutoff": 0.6, "eos_token_id": ENDS},
    "eta": {"num_beams": 3, "top_k": 0, "eta_cutoff": 0.6, "num_return_sequences": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_greedy(pair: Pair, name: str) -> None:
    check(pair, **padded(), **({"max_new_tokens": 9} | OPTIONS[name]))


@pytest.mark.parametrize("name", DRAWS)
def test_drawn(pair: Pair, name: str) -> None:
    for seed in range(2):
        check(pair, **padded(), seed=seed, max_new_tokens=9, do_sample=True, **DRAWS[name])


@pytest.mark.parametrize(("scale", "penalty"), [(1.0, -1.0), (3.0, -0.5)])
def test_no_text_may_get_better_by_growing(scale: float, penalty: float) -> None:
    """With a negative penalty "never" must go by the present length: by the longest it would end too soon."""
    found = check(
        make_pair(num_key_value_heads=2, logit_scale=scale),
        **padded(),
        num_beams=3,
        num_return_sequences=3,
        length_penalty=penalty,
        early_stopping="never",
        eos_token_id=list(range(3, 90, 3)) if scale == 1.0 else list(range(3, 40)),
        pad_token_id=0,
        max_new_tokens=14,
    )
    lengths = (found.beam_indices >= 0).sum(dim=1).tolist()
    assert len(set(lengths)) > 2
    assert len(found.scores) < 14


def random_options(source: random.Random) -> dict[str, Any]:
    beams = source.randint(2, 6)
    return {
        "num_beams": beams,
        "num_return_sequences": source.randint(1, beams),
        "length_penalty": source.choice([-1.5, 0.0, 0.5, 1.0, 2.5]),
        "early_stopping": source.choice([True, False, "never"]),
        "eos_token_id": sorted(source.sample(range(1, 99), source.choice([1, 3, 25]))),
        "pad_token_id": source.choice([0, 2]),
        "max_new_tokens": source.randint(1, 12),
        "min_new_tokens": source.choice([None, 1]),
        "repetition_penalty": source.choice([1.0, 1.3]),
        "do_sample": source.random() < 0.4,
    }


@pytest.mark.parametrize("number", range(24))
def test_random_options(pair: Pair, number: int) -> None:
    source = random.Random(number)
    ids = random_ids(source.randint(1, 4), source.randint(1, 7), seed=number)
    check(pair, ids, seed=number, **random_options(source))
