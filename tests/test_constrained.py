"""The processor that keeps generated text within grammars: with a model, in batches, ahead of time or not."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chat_grammar_support import validator
from quarterdeck import CohereForCausalLM, CohereTokenizerFast
from quarterdeck.chat.grammars.grammar import Grammar, json_grammar, tool_calls_grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler, Matcher
from quarterdeck.errors import InputError
from quarterdeck.generation.constrained import GrammarLogitsProcessor

pytest_plugins = ["checkpoint_fixtures"]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["é", "日本"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind"],
}


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> CohereTokenizerFast:
    return CohereTokenizerFast.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CohereForCausalLM:
    return CohereForCausalLM.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def compiler(tokenizer: CohereTokenizerFast, model: CohereForCausalLM) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, vocab_size=model.config.vocab_size)


def generate(
    model: CohereForCausalLM, prompts: Tensor, processor: GrammarLogitsProcessor, **options: Any
) -> list[list[int]]:
    """The new ids of every row; sampled, as random weights write the same again and again."""
    torch.manual_seed(options.pop("seed", 0))
    found = model.generate(
        prompts,
        logits_processor=[processor],
        stopping_criteria=options.pop("stopping_criteria", [processor.advance]),
        do_sample=True,
        max_new_tokens=options.pop("max_new_tokens", 400),
        pad_token_id=0,
        **options,
    )
    return found[:, prompts.shape[1] :].tolist()


def text_of(tokenizer: CohereTokenizerFast, ids: list[int]) -> str:
    """The text up to the end token, which must be there."""
    end = ids.index(tokenizer.eos_token_id)
    assert set(ids[end + 1 :]) <= {0}
    return tokenizer.decode(ids[:end])


def test_a_batch_of_a_model_with_random_weights_writes_valid_json(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast, compiler: GrammarCompiler
) -> None:
    """Each row under a grammar of its own, and each as it would be alone in its grammar."""
    grammars = [
        json_grammar(SCHEMA),
        json_grammar({"enum": ["a", "b"]}),
        json_grammar(SCHEMA),
        json_grammar({"const": [1]}),
    ]
    prompts = torch.randint(8, 700, (4, 5), generator=torch.Generator().manual_seed(1))
    processor = GrammarLogitsProcessor([compiler.compile(grammar) for grammar in grammars], pad_token_id=0)
    texts = [text_of(tokenizer, ids) for ids in generate(model, prompts, processor)]
    for number in (0, 2):
        validator({**SCHEMA, "additionalProperties": False}).validate(json.loads(texts[number]))
    assert json.loads(texts[1]) in ("a", "b")
    assert json.loads(texts[3]) == [1]


@pytest.mark.parametrize("format", ["multi_step", "tool_use"])
def test_calls_of_a_model_with_random_weights_are_valid(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast, compiler: GrammarCompiler, format: Any
) -> None:
    grammar = tool_calls_grammar([{"name": "f", "parameters": SCHEMA}], tool_choice="f", format=format, max_calls=1)
    prompts = torch.randint(8, 700, (8, 4), generator=torch.Generator().manual_seed(2))
    processor = GrammarLogitsProcessor([compiler.compile(grammar) for _ in prompts], pad_token_id=0)
    rows = generate(model, prompts, processor, max_new_tokens=700)
    texts = [text_of(tokenizer, ids) for ids in rows if tokenizer.eos_token_id in ids]
    assert len(texts) > 3
    for text in texts:
        (call,) = json.loads(text.partition("```json\n")[2].removesuffix("\n```"))
        validator(SCHEMA).validate(call["parameters"])


BOUNDED = {
    "type": "object",
    "properties": {
        "place": {"enum": ["Bergen", "Tromsø", "東京"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "name": {"type": "string", "maxLength": 10},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "unit": {"anyOf": [{"const": "C"}, {"type": "null"}]},
    },
    "required": ["place", "days", "name"],
}


def test_a_thousand_calls_of_a_model_with_random_weights_are_valid(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast, compiler: GrammarCompiler
) -> None:
    """Every one comes to its end, and every one validates."""
    tools = [{"name": name, "parameters": BOUNDED} for name in ("forecast", "history")]
    grammar = tool_calls_grammar(tools, tool_choice="required", format="tool_use", max_calls=1)
    valid = 0
    for batch in range(10):
        prompts = torch.randint(8, 700, (100, 4), generator=torch.Generator().manual_seed(batch))
        processor = GrammarLogitsProcessor([compiler.compile(grammar) for _ in prompts], pad_token_id=0)
        for ids in generate(model, prompts, processor, seed=batch):
            (call,) = json.loads(text_of(tokenizer, ids).partition("```json\n")[2].removesuffix("\n```"))
            assert call["tool_name"] in ("forecast", "history")
            validator({**BOUNDED, "additionalProperties": False}).validate(call["parameters"])
            valid += 1
    assert valid == 1000


def test_masks_computed_ahead_are_those_computed_in_time(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast, compiler: GrammarCompiler
) -> None:
    prompts = torch.randint(8, 700, (3, 4), generator=torch.Generator().manual_seed(3))
    results = []
    for criteria in (True, False):
        processor = GrammarLogitsProcessor([compiler.compile(json_grammar(SCHEMA)) for _ in prompts], pad_token_id=0)
        own = {} if criteria else {"stopping_criteria": None}
        results.append(generate(model, prompts, processor, **own))
    assert results[0] == results[1]


class Slow(Matcher):
    """A matcher that waits to be told that it may compute a mask."""

    gate: threading.Event

    def mask(self) -> bytes:
        assert self.gate.wait(10)
        return super().mask()


def test_the_mask_is_computed_while_the_model_runs(compiler: GrammarCompiler, tokenizer: CohereTokenizerFast) -> None:
    """`advance` comes back at once, and `__call__` with the mask."""
    matcher = compiler.compile(json_grammar({"const": 12}))
    matcher.__class__ = Slow
    assert isinstance(matcher, Slow)
    matcher.gate = threading.Event()
    matcher.gate.set()
    processor = GrammarLogitsProcessor([matcher])
    prompt, scores = torch.tensor([[5]]), torch.zeros(1, compiler.vocab_size)
    processor(prompt, scores)
    first, second = tokenizer.encode("12", add_special_tokens=False)
    matcher.gate.clear()
    longer = torch.tensor([[5, first]])
    assert processor.advance(longer) is False
    matcher.gate.set()
    assert torch.isfinite(processor(longer, scores)).nonzero()[:, 1].tolist() == [second]


def test_scores_are_not_written_into_and_only_what_is_allowed_is_left(
    compiler: GrammarCompiler, tokenizer: CohereTokenizerFast
) -> None:
    def finite(processor: GrammarLogitsProcessor, ids: list[list[int]], size: int) -> list[list[int]]:
        scores = torch.randn(len(ids), size)
        before = scores.clone()
        result = processor(torch.tensor(ids), scores)
        assert torch.equal(scores, before)
        kept = torch.isfinite(result)
        assert torch.equal(result[kept], scores[kept])
        return [row.nonzero()[:, 0].tolist() for row in kept]

    one, end = tokenizer.encode("1", add_special_tokens=False)[0], tokenizer.eos_token_id
    size = compiler.vocab_size
    processor = GrammarLogitsProcessor([compiler.compile(json_grammar({"const": 1})), None])
    assert finite(processor, [[5], [5]], size + 9) == [[one], list(range(size + 9))]
    assert finite(processor, [[5, one], [5, 7]], size + 9) == [[end], list(range(size + 9))]
    assert finite(processor, [[5, one, end], [5, 7, 7]], size + 9) == [[end], list(range(size + 9))]
    assert finite(processor, [[5, one, end, 0], [5, 7, 7, 7]], size) == [[end], list(range(size))]


def test_rows_that_end_for_other_reasons_are_let_go(compiler: GrammarCompiler, tokenizer: CohereTokenizerFast) -> None:
    """A stop string, say: the row is filled with padding, or with end tokens."""
    for filler in (0, tokenizer.eos_token_id):
        processor = GrammarLogitsProcessor([compiler.compile(json_grammar(SCHEMA))], pad_token_id=0)
        brace = tokenizer.encode("{", add_special_tokens=False)[0]
        scores = torch.zeros(1, compiler.vocab_size)
        for ids in ([5], [5, brace], [5, brace, filler], [5, brace, filler, filler]):
            left = torch.isfinite(processor(torch.tensor([ids]), scores)).nonzero()[:, 1].tolist()
        assert left == [tokenizer.eos_token_id]


def test_a_token_that_the_grammar_does_not_allow_is_an_error(compiler: GrammarCompiler) -> None:
    processor = GrammarLogitsProcessor([compiler.compile(json_grammar())], pad_token_id=0)
    scores = torch.zeros(1, compiler.vocab_size)
    processor(torch.tensor([[5]]), scores)
    with pytest.raises(InputError, match="cannot come next"):
        processor(torch.tensor([[5, 3]]), scores)


def test_rows_and_matchers_must_be_as_many(compiler: GrammarCompiler) -> None:
    processor = GrammarLogitsProcessor([compiler.compile(json_grammar())])
    with pytest.raises(InputError, match="1 grammars and 2 rows"):
        processor(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, compiler.vocab_size))
    with pytest.raises(InputError, match="per row"):
        GrammarLogitsProcessor([])


def test_several_tokens_at_once_are_taken_in_order(compiler: GrammarCompiler, tokenizer: CohereTokenizerFast) -> None:
    grammar: Grammar = json_grammar({"const": "abc"})
    processor = GrammarLogitsProcessor([compiler.compile(grammar)])
    ids = tokenizer.encode('"abc"', add_special_tokens=False)
    scores = torch.zeros(1, compiler.vocab_size)
    processor(torch.tensor([[5]]), scores)
    left = processor(torch.tensor([[5, *ids]]), scores)
    assert torch.isfinite(left).nonzero()[:, 1].tolist() == [tokenizer.eos_token_id]
