"""Guesses from the text itself, and which guesses are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Pair, make_ours, random_ids
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.candidates import PromptLookup
from speculation_support import Assistants, Counted, Letters, assistants, pair, prompt

__all__ = ["assistants", "pair"]  # fixtures


def looked_up(ids: list[int], count: int = 10, ngram: int = 2, ends: tuple[int, ...] = (), most: int = 99) -> list[int]:
    return list(PromptLookup(count, ngram, ends).propose(torch.tensor([ids]), most).tokens)


def test_what_followed_the_same_tokens_is_proposed() -> None:
    assert looked_up([1, 2, 3, 4, 9, 2, 3]) == [4, 9, 2, 3]
    assert looked_up([1, 2, 3, 4, 9, 2, 3], count=2) == [4, 9]
    assert looked_up([1, 2, 3, 4, 9, 2, 3], most=1) == [4]
    assert looked_up([1, 2, 3, 4, 9, 2, 3], most=0) == []
    assert looked_up([3, 5, 2, 3, 4, 2, 3]) == [4, 2, 3]  # the longer n-gram counts, though the 3 came before
    assert looked_up([3, 5, 2, 3, 4, 2, 3], ngram=1) == [5, 2, 3, 4, 2, 3]
    assert looked_up([6, 6, 6]) == [6]
    assert looked_up([1, 2, 3]) == []
    assert looked_up([1]) == []


def test_nothing_is_proposed_behind_an_end_token() -> None:
    assert looked_up([1, 2, 7, 4, 1, 2], ends=(7,)) == []
    assert looked_up([1, 2, 5, 7, 4, 1, 2], ends=(7, 8)) == [5]
    assert looked_up([1, 2, 5, 7, 4, 1, 2]) == [5, 7, 4, 1, 2]  # there are none


@pytest.mark.parametrize("seed", range(0, 40, 3))
def test_the_same_is_proposed_as_in_transformers(seed: int) -> None:
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6, (1, 2 + seed), generator=generator)
    count, ngram, end = 1 + seed % 5, 1 + seed % 4, 5
    theirs = PromptLookupCandidateGenerator(torch.tensor([end]), count, ngram, max_length=1000)
    expected = theirs.get_candidates(ids)[0][0, ids.shape[1] :].tolist()
    assert looked_up(ids[0].tolist(), count, ngram, (end,)) == expected


def repeating() -> Tensor:
    """A prompt that a model made, so that it goes on as it began."""
    return torch.cat((random_ids(1, 8), random_ids(1, 8), random_ids(1, 5)), dim=1)


@pytest.mark.parametrize("ngram", [None, 3])
@pytest.mark.parametrize("end", [7, [7, 20, 33, 41]])
def test_as_in_transformers(pair: Pair, ngram: int | None, end: Any) -> None:
    for ids in (prompt(), repeating()):
        options = {
            "max_new_tokens": 40,
            "eos_token_id": end,
            "prompt_lookup_num_tokens": 5,
            "max_matching_ngram_size": ngram,
        }
        theirs = pair.theirs.generate(ids, **options)
        with Counted(pair.ours) as counted:
            ours = pair.ours.generate(ids, **options)
        assert ours.tolist() == theirs.tolist()
        assert counted.runs < ours.shape[1] - ids.shape[1]


def test_without_end_tokens(pair: Pair) -> None:
    """Where transformers fails."""
    plain = pair.ours.generate(repeating(), max_new_tokens=50, eos_token_id=None)
    guessed = pair.ours.generate(repeating(), max_new_tokens=50, eos_token_id=None, prompt_lookup_num_tokens=6)
    assert guessed.tolist() == plain.tolist()


@pytest.mark.parametrize("with_ids", [True, False])
def test_embeddings_as_prompts(pair: Pair, with_ids: bool) -> None:
    embeds = pair.ours.get_input_embeddings()(repeating()).detach()
    options: dict[str, Any] = {"inputs_embeds": embeds, "max_new_tokens": 40, "eos_token_id": None}
    if with_ids:
        options["input_ids"] = repeating()
    for use_cache in (True, False):
        plain = pair.ours.generate(**options, use_cache=use_cache)
        with Counted(pair.ours) as counted:
            guessed = pair.ours.generate(**options, use_cache=use_cache, prompt_lookup_num_tokens=6)
        assert guessed.tolist() == plain.tolist()
        assert counted.runs < 40


# ------------------------------------------------------------------------- what is refused


def test_refusals(pair: Pair, assistants: Assistants) -> None:
    model, twin, two = pair.ours, assistants["twin"], random_ids(2, 5)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("one row at a time and this is a batch of 2 rows: call", {"input_ids": two, "assistant_model": twin}),
        ("prompt_lookup_num_tokens works for one row", {"input_ids": two, "prompt_lookup_num_tokens": 3}),
        ("num_return_sequences=3", {"assistant_model": twin, "num_return_sequences": 3, "do_sample": True}),
        ("both given", {"assistant_model": twin, "prompt_lookup_num_tokens": 3}),
        ("num_beams=2 writes several", {"assistant_model": twin, "num_beams": 2}),
        ("is a transformers.*must be a model of Quarterdeck", {"assistant_model": pair.theirs}),
        ("is a builtins.str", {"assistant_model": "midshipman"}),
        ("has 50 tokens and the model 99", {"assistant_model": make_ours(vocab_size=50)}),
        ("num_assistant_tokens=0", {"assistant_model": twin, "num_assistant_tokens": 0}),
        ("one of constant", {"assistant_model": twin, "num_assistant_tokens_schedule": "quick"}),
        ("prompt_lookup_num_tokens=0", {"prompt_lookup_num_tokens": 0}),
    ]
    for message, options in refused:
        with pytest.raises(InputError, match=message):
            model.generate(**({"input_ids": prompt(), "max_new_tokens": 3} | options))
    with pytest.raises(InputError, match="cannot read inputs_embeds"):
        model.generate(inputs_embeds=model.get_input_embeddings()(prompt()), assistant_model=twin)
    with pytest.raises(UnsupportedOptionError, match=r"assistant_tokenizer.*prompt_lookup_num_tokens"):
        model.generate(prompt(), assistant_model=twin, assistant_tokenizer=Letters())


def test_options_of_an_absent_assistant_are_mentioned(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.ours.generate(prompt(), max_new_tokens=1, num_assistant_tokens=3, max_matching_ngram_size=2)
    assert "num_assistant_tokens=3 has no effect: it needs assistant_model" in caplog.text
    assert "max_matching_ngram_size=2 has no effect: it needs prompt_lookup_num_tokens" in caplog.text
