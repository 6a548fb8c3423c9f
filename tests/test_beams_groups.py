"""Groups of beams (diverse beam search) against transformers on tiny random models."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from parity import Pair, make_pair, random_ids
from test_beams import ENDS, EVERYTHING, SPAN, both, padded, random_options


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(num_key_value_heads=2, logit_scale=0.1)


GROUPS: dict[str, dict[str, Any]] = {
    "two": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "all": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "num_return_sequences": 4},
    "singles": {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 5.0, "num_return_sequences": 3},
    "many ends": {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 1.0, "eos_token_id": ENDS},
    "stop early": {
        "num_beams": 6,
        "num_beam_groups": 3,
        "diversity_penalty": 0.7,
        "eos_token_id": ENDS,
        "early_stopping": True,
        "num_return_sequences": 6,
    },
    "never early": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.7,
        "eos_token_id": ENDS,
        "early_stopping": "never",
        "length_penalty": 2.0,
        "num_return_sequences": 3,
    },
    "padding": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.7,
        "eos_token_id": ENDS,
        "pad_token_id": 11,
        "length_penalty": -1.0,
        "num_return_sequences": 3,
    },
    "penalties": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.7,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "sequence_bias": {(3,): 4.0},
        "min_new_tokens": 3,
        "eos_token_id": ENDS,
    },
}


def check_groups(pair: Pair, *args: Any, **options: Any) -> None:
    """As `check`, but for `beam_indices`, which are those of the first group for all in transformers."""
    ours, theirs = both(pair, *args, **(EVERYTHING | options))
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=SPAN, atol=SPAN)
    assert len(ours.scores) == len(theirs.scores)
    torch.testing.assert_close(ours.scores[0], theirs.scores[0], rtol=SPAN, atol=5 * SPAN)


@pytest.mark.parametrize("name", GROUPS)
def test_groups(pair: Pair, name: str) -> None:
    check_groups(pair, **padded(), **({"max_new_tokens": 9} | GROUPS[name]))


@pytest.mark.parametrize("number", range(16))
def test_random_groups(pair: Pair, number: int) -> None:
    source = random.Random(number)
    ids = random_ids(source.randint(1, 3), source.randint(1, 7), seed=number)
    groups, size = source.randint(2, 4), source.randint(1, 3)
    options = random_options(source) | {
        "num_beams": groups * size,
        "num_beam_groups": groups,
        "num_return_sequences": source.randint(1, groups * size),
        "diversity_penalty": source.choice([0.1, 1.0, 4.0]),
        "do_sample": False,
    }
    check_groups(pair, ids, **options)
