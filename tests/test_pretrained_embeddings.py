"""Other numbers of tokens, other embeddings, tied and untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.model import CohereForCausalLM, CohereModel
from test_pretrained import IDS, TINY, logits, tiny


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [106, 97])
def test_more_tokens(tied: bool, rows: int, tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=tied)
    before, head = logits(model), model.lm_head.weight.detach().clone()
    embedding = model.resize_token_embeddings(rows)
    assert embedding is model.get_input_embeddings()
    assert embedding.weight.shape == (rows, 32)
    assert model.config.vocab_size == embedding.num_embeddings == model.lm_head.out_features == rows
    assert (model.lm_head.weight is embedding.weight) == tied
    assert torch.equal(model.lm_head.weight[:96], head)
    torch.testing.assert_close(logits(model)[..., :96], before)
    model(torch.tensor([[rows - 1]]))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(CohereForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("tied", [True, False])
def test_fewer_tokens(tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied)
    ids = IDS.clamp(max=49)
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(50)
        torch.testing.assert_close(model(ids).logits, before[..., :50])
        with pytest.raises(InputError, match="0 to 49"):
            model(torch.tensor([[50]]))


def test_rounding_up() -> None:
    model = tiny()
    assert model.resize_token_embeddings(97, pad_to_multiple_of=64).weight.shape[0] == 128
    assert model.resize_token_embeddings(pad_to_multiple_of=100).weight.shape[0] == 200
    assert model.resize_token_embeddings(200, pad_to_multiple_of=100).weight.shape[0] == 200
    assert model.resize_token_embeddings() is model.get_input_embeddings()


@pytest.mark.parametrize(
    "options",
    [
        {"new_num_tokens": 0},
        {"new_num_tokens": True},
        {"new_num_tokens": 100.0},
        {"new_num_tokens": "100"},
        {"pad_to_multiple_of": 1.3},
        {"pad_to_multiple_of": True},
        {"pad_to_multiple_of": 0},
    ],
)
def test_numbers_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} is .* whole number"):
        tiny().resize_token_embeddings(**options)


def test_the_padding_token_cannot_be_cut_off() -> None:
    model = tiny(pad_token_id=90)
    with pytest.raises(InputError, match="cut off the padding token 90"):
        model.resize_token_embeddings(90)
    assert model.config.vocab_size == 96


def test_new_rows_are_around_the_mean_or_as_in_an_untrained_model() -> None:
    model = tiny()
    old = model.get_input_embeddings().weight.detach().clone()
    rows = model.resize_token_embeddings(196).weight[96:]
    torch.testing.assert_close(rows, old.mean(dim=0).expand(100, -1), rtol=0, atol=1e-4)
    assert len(rows.unique(dim=0)) == 100
    model = tiny()
    rows = model.resize_token_embeddings(196, mean_resizing=False).weight[96:]
    assert 0.018 < rows.std() < 0.022


def test_the_noise_has_the_covariance_of_the_rows() -> None:
    from quarterdeck.weights.resize import _rows_like

    torch.manual_seed(0)
    weight = torch.randn(50, 3) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.1]]) + 5
    rows = _rows_like(weight, 200_000, spread=1.0)
    torch.testing.assert_close(rows.mean(dim=0), weight.mean(dim=0), rtol=0.01, atol=0.02)
    torch.testing.assert_close(rows.T.cov(), weight.T.cov(correction=0), rtol=0.05, atol=0.01)


def test_type_training_and_base_models() -> None:
    model = CohereModel(CohereConfig(**TINY)).to(torch.bfloat16)
    model.embed_tokens.weight.requires_grad = False
    model.resize_token_embeddings(100)
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    assert not model.embed_tokens.weight.requires_grad
    assert model(torch.tensor([[99]])).last_hidden_state.shape == (1, 1, 32)


def test_a_model_that_is_mapped_from_its_file(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    model = CohereForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path)
    assert CohereForCausalLM.from_pretrained(tmp_path).config.vocab_size == 100


def test_getting_and_setting() -> None:
    model = tiny()
    fresh = nn.Embedding(96, 32)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh
    model.tie_weights()
    assert model.lm_head.weight is fresh.weight
    head = nn.Linear(32, 96, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    assert model.model.get_output_embeddings() is None
    with pytest.raises(InputError, match="no output head"):
        model.model.set_output_embeddings(head)


def test_a_head_that_came_loose_is_not_lost(tmp_path: Path) -> None:
    """A head replaced without tying is another tensor: it is written, and loading says that it does not fit."""
    model = tiny()
    model.set_output_embeddings(nn.Linear(32, 96, bias=False))
    model.save_pretrained(tmp_path)
    again = CohereForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(OSError, match="one tensor in the model, two in the checkpoint"):
        CohereForCausalLM.from_pretrained(tmp_path)
