"""Names, signatures and manners that programs written for transformers rely on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from parity import assert_close, make_ours, make_pair, random_ids, transformers
from quarterdeck import CohereForCausalLM, CohereModel
from quarterdeck.errors import InputError


@pytest.mark.parametrize("ours", [CohereModel, CohereForCausalLM], ids=lambda kind: kind.__name__)
def test_arguments_stand_where_they_stand_in_transformers(ours: Any) -> None:
    theirs = getattr(transformers, ours.__name__)

    def positional(kind: Any) -> list[str]:
        parameters = inspect.signature(inspect.unwrap(kind.forward)).parameters.values()
        return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    expected = positional(theirs)
    assert expected[:3] == ["self", "input_ids", "attention_mask"], "the signature is read"
    assert positional(ours)[: len(expected)] == expected


@torch.no_grad()
def test_arguments_by_position() -> None:
    pair = make_pair("sdpa")
    embeds = pair.ours.get_input_embeddings()(random_ids(2, 5))
    given = (None, torch.ones(2, 5).long(), torch.arange(5)[None], None, embeds, torch.arange(5), False)
    ours = pair.ours.model(*given)
    names = list(inspect.signature(CohereModel.forward).parameters)[1 : 1 + len(given)]
    theirs = pair.theirs.model(**dict(zip(names, given, strict=True)))
    assert_close(ours.last_hidden_state, theirs.last_hidden_state)
    assert ours.past_key_values is None


def test_decoder() -> None:
    model, other = make_ours(), make_ours(seed=3)
    assert model.get_decoder() is model.model
    model.set_decoder(other.model)
    ids = random_ids(1, 4)
    assert model.get_decoder() is other.model
    assert_close(model.model(ids).last_hidden_state, other.model(ids).last_hidden_state)


def test_checkpointing_is_announced() -> None:
    assert CohereForCausalLM.supports_gradient_checkpointing
    assert CohereModel.supports_gradient_checkpointing


@torch.no_grad()
def test_loss_function_is_that_of_forward_and_of_transformers() -> None:
    pair = make_pair()
    ids = random_ids(2, 7)
    labels = ids.masked_fill(random_ids(2, 7, seed=4) < 30, -100)
    output = pair.ours(ids, labels=labels)
    for options in ({}, {"vocab_size": 99}, {"vocab_size": 99, "num_items_in_batch": 5}):
        theirs = pair.theirs.loss_function(output.logits, labels, **({"vocab_size": 99} | options))
        assert_close(pair.ours.loss_function(output.logits, labels, **options), theirs)
    assert torch.equal(pair.ours.loss_function(output.logits, labels), output.loss)
    with pytest.raises(InputError, match="vocab_size is 98, but the logits have 99 words; leave it out"):
        pair.ours.loss_function(output.logits, labels, vocab_size=98)
    pair.ours.loss_function = lambda logits, labels, **_: torch.tensor(5.0)
    assert pair.ours(ids, labels=labels).loss == 5


# -- logits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_a_hook_keeps_is_not_changed(mode: Any) -> None:
    model, kept = make_ours(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: kept.append((output, output.detach().clone())))
    with mode():
        logits = model(random_ids(1, 4)).logits
        output, before = kept[0]
        assert torch.equal(output, before)
        assert torch.equal(logits, before * 0.25)


@torch.no_grad()
def test_what_a_replaced_head_owns_is_not_changed() -> None:
    class Stored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.ones(1, 4, 99)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table

    model = make_ours()
    model.lm_head = Stored()
    for _ in range(2):
        assert torch.equal(model(random_ids(1, 4)).logits, torch.full((1, 4, 99), 0.25))
