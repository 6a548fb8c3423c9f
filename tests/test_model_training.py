"""Gradients equal to transformers', with and without recomputation; dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parity import ROPES, SWITCHES, assert_close, make_ours, make_pair, padding_mask, random_ids
from quarterdeck import CohereForCausalLM, DynamicCache
from quarterdeck.errors import InputError

ATTENTION = ("eager", "sdpa")
B, T = 3, 12


def gradients(model: Any, ids: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(ids, labels=options.pop("labels", ids), **options).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5
) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, expected in theirs.items():
        assert expected.abs().max() > 0, f"{name} has no gradient: the test sees nothing"
        # of its own scale; but a gradient that is all cancellation (a key's bias) only of the whole's
        allowed = tolerance * max(float(expected.abs().max()), 1e-2 * scale)
        assert float((ours[name] - expected).abs().max()) <= allowed, name


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", [*SWITCHES, "yarn_8", "dynamic_8", "longrope_8"])
def test_gradient_of_every_parameter(case: str, attention: str) -> None:
    pair = make_pair(attention, **(SWITCHES | ROPES)[case])
    pair.ours.train()
    pair.theirs.train()
    ids = random_ids(B, T)
    assert_same_gradients(gradients(pair.ours, ids), gradients(pair.theirs, ids))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_with_padding(side: str, attention: str) -> None:
    pair = make_pair(attention, num_key_value_heads=2)
    ids, mask = random_ids(B, T), padding_mask(B, T, side)
    labels = torch.where(mask.bool(), ids, -100)
    # the last pad on the left predicts the first token: what such a row makes is nobody's promise
    labels[torch.arange(B), mask.argmax(-1)] = -100
    options = {"attention_mask": mask, "labels": labels, "num_items_in_batch": 5}
    assert_same_gradients(gradients(pair.ours, ids, **options), gradients(pair.theirs, ids, **options))


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients_of_packed_rows(attention: str) -> None:
    pair = make_pair(attention)
    ids = random_ids(1, T)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]])
    options = {"position_ids": positions, "use_cache": False}
    assert_same_gradients(gradients(pair.ours, ids, **options), gradients(pair.theirs, ids, **options))


def test_gradients_reach_embeddings_states_and_weights() -> None:
    pair = make_pair("eager")
    ids = random_ids(2, 6)
    kept = []
    for model in (pair.ours, pair.theirs):
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        output = model(inputs_embeds=embeds, output_hidden_states=True, output_attentions=True)
        watched = [*output.hidden_states, *output.attentions]
        for tensor in watched:
            tensor.retain_grad()
        output.logits.square().sum().backward()
        kept.append([embeds.grad, *(tensor.grad for tensor in watched)])
    for mine, other in zip(*kept, strict=True):
        assert other.abs().max() > 0
        assert_close(mine, other)


def test_a_row_that_is_all_padding_makes_no_nan() -> None:
    for attention in ATTENTION:
        model = make_ours(attention)
        ids, mask = random_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
        mask[1] = 0
        labels = torch.where(mask.bool(), ids, -100)
        found = gradients(model, ids, attention_mask=mask, labels=labels)
        alone = gradients(model, ids[:1], labels=labels[:1])
        for name, gradient in found.items():
            assert gradient.isfinite().all(), name
            assert_close(gradient, alone[name])


# -- gradient checkpointing ----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant: bool, attention: str) -> None:
    model = make_ours(attention, num_key_value_heads=2, use_qk_norm=True).train()
    ids, mask = random_ids(B, T), padding_mask(B, T, "right")
    expected = gradients(model, ids, attention_mask=mask)
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model, ids, attention_mask=mask)
    assert len(calls) == 2, "the layer was not computed again"
    assert_same_gradients(found, expected)
    model.gradient_checkpointing_disable()
    calls.clear()
    gradients(model, ids, attention_mask=mask)
    assert len(calls) == 1


def test_checkpointing_repeats_the_dropout_that_was_drawn() -> None:
    ids = random_ids(B, T)
    found = []
    for enabled in (False, True):
        model = make_ours("eager", attention_dropout=0.5).train()
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        found.append(gradients(model, ids))
    assert_same_gradients(found[1], found[0])


def test_checkpointing_and_a_cache_exclude_each_other() -> None:
    model = make_ours().train()
    model.gradient_checkpointing_enable()
    ids = random_ids(1, 4)
    assert model(ids).past_key_values is None
    # a layer that is computed twice would append twice
    for options in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(InputError, match=r"gradient checkpointing in training takes no cache.*use_cache"):
            model(ids, **options)
    model.eval()
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 4


# -- dropout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
def test_dropout_is_for_training_only(attention: str) -> None:
    pair = make_pair(attention, attention_dropout=0.5)
    ids = random_ids(B, T)
    with torch.no_grad():
        assert_close(pair.ours(ids).logits, pair.theirs(ids).logits)
        pair.ours.train()
        assert not torch.equal(pair.ours(ids).logits, pair.ours(ids).logits)


@torch.no_grad()
def test_dropout_keeps_the_mean_and_the_rate() -> None:
    model = make_ours("eager", attention_dropout=0.25, num_hidden_layers=1, std=0.05).train()
    ids = random_ids(64, 16)
    torch.manual_seed(0)
    weights = model(ids, output_attentions=True).attentions[0]
    visible = torch.ones(16, 16, dtype=torch.bool).tril().expand_as(weights)
    kept = weights[visible] > 0
    assert abs(float(kept.float().mean()) - 0.75) < 0.01  # of 35,000 draws: four standard deviations
    model.eval()
    expected = model(ids, output_attentions=True).attentions[0]
    assert_close(weights[visible][kept], expected[visible][kept] / 0.75)


@torch.no_grad()
def test_dropout_of_both_backends_has_one_mean() -> None:
    ids = random_ids(1, 6).expand(4000, -1)
    means = []
    for attention in ATTENTION:
        model = make_ours(attention, attention_dropout=0.3, num_hidden_layers=1, std=0.1).train()
        torch.manual_seed(1)
        means.append(model.model(ids, use_cache=False).last_hidden_state.mean(0))
    assert float((means[0] - means[1]).abs().max()) < 0.02 * float(means[0].abs().max())


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = CohereForCausalLM(make_ours(attention_dropout=0.1).config).train()
    ids = random_ids(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.5 * first
