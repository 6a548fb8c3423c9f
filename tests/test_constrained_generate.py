"""A grammar for whoever calls `generate`: made from a schema, alone and with guesses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from quarterdeck import CohereForCausalLM, CohereTokenizerFast, GrammarLogitsProcessor
from quarterdeck.errors import ChatError, InputError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "country": {"enum": ["Norway", "Sweden", "Denmark"]},
        "letters": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["country", "letters"],
}


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    return CohereForCausalLM.from_pretrained("midshipman")


@pytest.fixture(scope="module")
def tokenizer() -> CohereTokenizerFast:
    return CohereTokenizerFast.from_pretrained("midshipman")


def prompt(tokenizer: CohereTokenizerFast) -> Tensor:
    messages = [{"role": "user", "content": "What is the capital of Denmark? Answer as JSON."}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")


def test_guesses_are_kept_to_the_grammar_too(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    """With and without the worker thread, greedy and drawn, and always the text that plain decoding gives."""
    ids = prompt(tokenizer)
    guesses: tuple[dict[str, Any], ...] = (
        {},
        {"prompt_lookup_num_tokens": 4},
        {"assistant_model": model, "num_assistant_tokens": 4, "assistant_confidence_threshold": 0.0},
    )
    for drawn in ({}, {"do_sample": True, "temperature": 0.9}):
        found = []
        for guess in guesses[: 2 if drawn else 3]:
            grammar = GrammarLogitsProcessor.from_schema(SCHEMA, tokenizer)
            more = {"stopping_criteria": [grammar.advance]} if len(found) != 1 else {}
            seed = {"seed": 4} if drawn else {}
            row = model.generate(ids, logits_processor=[grammar], max_new_tokens=90, **guess, **drawn, **seed, **more)
            text = tokenizer.decode(row[0, ids.shape[1] :], skip_special_tokens=True)
            answer = json.loads(text)
            assert answer["country"] in ("Norway", "Sweden", "Denmark")
            assert 2 <= len(answer["letters"]) <= 3
            found.append(text)
        assert found[0] == found[1]  # by looking up, also the draws are those of plain decoding
        assert found[0] == found[-1]


def test_a_grammar_for_every_row(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    grammar = GrammarLogitsProcessor.from_schema({"enum": ["yes", "no"]}, tokenizer, rows=3)
    rows = model.generate(
        prompt(tokenizer), logits_processor=[grammar], num_return_sequences=3, do_sample=True, seed=1, max_new_tokens=9
    )
    texts = tokenizer.batch_decode(rows[:, prompt(tokenizer).shape[1] :], skip_special_tokens=True)
    assert {json.loads(text) for text in texts} <= {"yes", "no"}


@pytest.mark.parametrize("rows", [1, 2])
def test_beams_are_refused(model: CohereForCausalLM, tokenizer: CohereTokenizerFast, rows: int) -> None:
    """Also as many grammars as beams, which would be those of other texts after a step."""
    grammar = GrammarLogitsProcessor.from_schema({"enum": ["yes", "no"]}, tokenizer, rows=rows)
    for more in ({}, {"stopping_criteria": [grammar.advance]}):
        with pytest.raises(
            InputError, match=r"GrammarLogitsProcessor keeps track.*num_beams=2 moves rows: set num_beams=1"
        ):
            model.generate(prompt(tokenizer), logits_processor=[grammar], num_beams=2, max_new_tokens=9, **more)


def test_other_end_tokens_may_end_a_text(tokenizer: CohereTokenizerFast) -> None:
    grammar = GrammarLogitsProcessor.from_schema({"const": 1}, tokenizer, end_token_ids=[3])
    one = tokenizer.encode("1", add_special_tokens=False)
    scores = torch.zeros(1, len(tokenizer))
    grammar(torch.tensor([[5]]), scores)
    assert torch.isfinite(grammar(torch.tensor([[5, *one]]), scores)).nonzero()[:, 1].tolist() == [3]


def test_a_schema_that_cannot_be_enforced_is_refused(tokenizer: CohereTokenizerFast) -> None:
    with pytest.raises(ChatError, match="not"):
        GrammarLogitsProcessor.from_schema({"not": {"type": "string"}}, tokenizer)
