"""Joined layers and the head's cross entropy give the loss and the gradients of the plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.errors import InputError
from quarterdeck.training.cross_entropy import IGNORED, linear_cross_entropy
from quarterdeck.training.layers import JoinedLayer, join_layers

FIELDS = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def model(**more: object) -> CohereForCausalLM:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**FIELDS, **more))


def test_joined_layers_train_as_plain_ones_do() -> None:
    plain, joined = model(), model()
    names = [name for name, _ in joined.named_parameters()]
    join_layers(joined)
    assert all(type(layer) is JoinedLayer for layer in joined.model.layers)
    assert [name for name, _ in joined.named_parameters()] == names  # optimizers find them in the same order
    ids = torch.randint(1, 300, (3, 17), generator=torch.Generator().manual_seed(1))
    for one in (plain, joined):
        one(input_ids=ids, labels=ids).loss.backward()
    for mine, theirs in zip(joined.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5 * float(theirs.grad.abs().max()))
    with torch.no_grad():
        assert torch.allclose(joined(ids).logits, plain(ids).logits, atol=1e-5)
        assert torch.equal(joined.generate(ids, max_new_tokens=4), plain.generate(ids, max_new_tokens=4))


@pytest.mark.parametrize("more", [{"use_qk_norm": True}, {"attention_bias": True}])
def test_what_cannot_be_joined_is_refused(more: dict[str, bool]) -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0 has biases, norms of heads"):
        join_layers(model(**more))


def test_a_second_derivative_of_the_cross_entropy_is_refused() -> None:
    states, weight = (torch.randn(6, 4).requires_grad_() for _ in range(2))
    loss = linear_cross_entropy(states, weight, torch.arange(6)) ** 2  # its gradient depends on the loss
    for leaf in (states, weight):
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.sum().backward()


@pytest.mark.parametrize("counted", [0, 1, 255, 256, 600])
def test_cross_entropy_of_a_head_is_pytorchs(counted: int) -> None:
    generator = torch.Generator().manual_seed(counted)
    states = torch.randn(700, 24, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (3 * torch.randn(50, 24, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, 50, (700,), generator=generator)
    targets[torch.randperm(700, generator=generator)[counted:]] = IGNORED
    mine = torch.autograd.grad(2 * linear_cross_entropy(states, weight, targets), (states, weight))
    if not counted:
        assert all(not gradient.any() for gradient in mine)
        return
    loss = functional.cross_entropy(states @ weight.T, targets, ignore_index=IGNORED)
    assert linear_cross_entropy(states, weight, targets).item() == pytest.approx(loss.item(), rel=1e-5)
    for gradient, expected in zip(mine, torch.autograd.grad(2 * loss, (states, weight)), strict=True):
        assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))
