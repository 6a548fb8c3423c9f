"""Numbers equal to transformers': every switch of the architecture and every argument of ``forward``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parity import (
    ROPES,
    SWITCHES,
    TINY,
    TOLERANCE,
    assert_close,
    make_ours,
    make_pair,
    padding_mask,
    random_ids,
    relative_error,
    transformers,
)
from quarterdeck import CohereModel
from quarterdeck.activations import ACTIVATIONS

ATTENTION = ("eager", "sdpa")
SIDES = (None, "left", "right")
B, T = 3, 12


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", [*SWITCHES, *ROPES])
@torch.no_grad()
def test_logits_and_hidden_states(case: str, attention: str) -> None:
    pair = make_pair(attention, **(SWITCHES | ROPES)[case])
    ids = random_ids(B, T)
    for side in SIDES:
        mask = padding_mask(B, T, side)
        theirs = pair.theirs(ids, attention_mask=mask, output_hidden_states=True)
        ours = pair.ours(ids, attention_mask=mask, output_hidden_states=True)
        # what a row of padding that sees nothing becomes is compared where it is defined, in eager
        real = slice(None) if mask is None or attention == "eager" else mask.bool()
        assert_close(ours.logits[real], theirs.logits[real])
        assert len(ours.hidden_states) == len(theirs.hidden_states) == pair.ours.config.num_hidden_layers + 1
        for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            assert_close(mine[real], other[real])


@pytest.mark.parametrize("case", ROPES)
@torch.no_grad()
def test_far_beyond_the_trained_length(case: str) -> None:
    pair = make_pair("sdpa", **ROPES[case])
    ids = random_ids(1, 200)
    assert_close(pair.ours(ids).logits, pair.theirs(ids).logits)


def test_the_measure_sees_a_wrong_switch() -> None:
    # the parity tests mean nothing if the tiny models hide a difference: turn each switch off on our side only
    ids = random_ids(B, T)
    for fields in ({"logit_scale": 0.26}, {"layer_norm_eps": 1e-3}, {"rope_theta": 20000.0}, {"hidden_act": "gelu"}):
        theirs = make_pair("eager").theirs
        ours = make_ours("eager", **fields)
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            assert relative_error(ours(ids).logits, theirs(ids).logits) > 20 * TOLERANCE, fields


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name in transformers.activations.ACT2FN])
def test_activation(name: str) -> None:
    x = torch.cat([torch.linspace(-20, 20, 2001), torch.tensor([0.0, -0.0, 1e-8, -1e-8])])
    assert_close(ACTIVATIONS[name](x), transformers.activations.ACT2FN[name](x), 1e-6)
    pair = make_pair(hidden_act=name)
    ids = random_ids(2, 5)
    with torch.no_grad():
        assert_close(pair.ours(ids).logits, pair.theirs(ids).logits)


def test_all_activations_are_known_to_transformers() -> None:
    assert set(ACTIVATIONS) <= set(transformers.activations.ACT2FN)


def test_activation_may_be_a_function() -> None:
    named, given = make_ours(hidden_act="relu"), make_ours(hidden_act=torch.relu)
    ids = random_ids(2, 5)
    assert torch.equal(named(ids).logits, given(ids).logits)


# -- arguments of forward ------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_inputs_embeds(attention: str) -> None:
    pair = make_pair(attention)
    embeds = torch.randn(B, T, 32, generator=torch.Generator().manual_seed(3))
    assert_close(pair.ours(inputs_embeds=embeds).logits, pair.theirs(inputs_embeds=embeds).logits)
    ids = random_ids(B, T)
    looked_up = pair.ours.get_input_embeddings()(ids)
    assert torch.equal(pair.ours(inputs_embeds=looked_up).logits, pair.ours(ids).logits)


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_position_ids(attention: str) -> None:
    pair = make_pair(attention)
    ids, mask = random_ids(B, T), padding_mask(B, T, "left")
    positions = (mask.cumsum(-1) - 1).clamp(min=1)
    ours = pair.ours(ids, attention_mask=mask, position_ids=positions).logits
    theirs = pair.theirs(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(ours[mask.bool()], theirs[mask.bool()])
    # uneven steps tell whether the positions given are the ones used
    stretched = (torch.arange(T) ** 2)[None]
    ours = pair.ours(ids, position_ids=stretched).logits
    assert_close(ours, pair.theirs(ids, position_ids=stretched).logits)
    assert relative_error(ours, pair.ours(ids).logits) > 1e-2


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_packed_rows_equal_transformers_and_each_document_alone(attention: str) -> None:
    pair = make_pair(attention, num_key_value_heads=2)
    ids = random_ids(2, T)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1], [*range(7), *range(5)]])
    ours = pair.ours(ids, position_ids=positions, use_cache=False).logits
    assert_close(ours, pair.theirs(ids, position_ids=positions, use_cache=False).logits)
    for row, start, end in ((0, 0, 4), (0, 4, 10), (0, 10, 12), (1, 0, 7), (1, 7, 12)):
        assert_close(ours[row, start:end], pair.ours(ids[row : row + 1, start:end]).logits[0])


@torch.no_grad()
def test_with_a_cache_restarting_positions_are_no_documents() -> None:
    pair = make_pair("sdpa")
    ids, positions = random_ids(1, 8), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    ours, theirs = pair.ours(ids, position_ids=positions), pair.theirs(ids, position_ids=positions)
    assert_close(ours.logits, theirs.logits)


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_cache_position(attention: str) -> None:
    pair = make_pair(attention)
    ids, at = random_ids(B, T), torch.arange(T)
    ours = pair.ours(ids, cache_position=at).logits
    assert_close(ours, pair.theirs(ids, cache_position=at).logits)
    assert_close(ours, pair.ours(ids).logits)


@torch.no_grad()
def test_output_attentions() -> None:
    for attention in ATTENTION:  # the weights exist in eager only, which then computes them whatever is set
        pair = make_pair(attention, num_key_value_heads=2)
        pair.theirs.set_attn_implementation("eager")
        ids = random_ids(B, T)
        for mask in (None, padding_mask(B, T, "left")):
            ours = pair.ours(ids, attention_mask=mask, output_attentions=True)
            theirs = pair.theirs(ids, attention_mask=mask, output_attentions=True)
            assert len(ours.attentions) == 2
            for mine, other in zip(ours.attentions, theirs.attentions, strict=True):
                assert mine.shape == (B, 4, T, T)
                assert_close(mine, other)
            assert_close(ours.logits, theirs.logits)


@torch.no_grad()
def test_outputs_asked_for_in_the_configuration() -> None:
    pair = make_pair("eager", output_attentions=True, output_hidden_states=True)
    ids = random_ids(1, 4)
    assert list(pair.ours(ids)) == list(pair.theirs(ids).keys())
    assert list(pair.ours(ids, output_attentions=False, output_hidden_states=False)) == ["logits", "past_key_values"]


@torch.no_grad()
def test_tuple_and_named_output_are_one() -> None:
    pair = make_pair("eager")
    ids = random_ids(2, 5)
    options: dict[str, Any] = {"labels": ids, "output_hidden_states": True, "output_attentions": True}
    named = pair.ours(ids, **options)
    ours, theirs = pair.ours(ids, **options, return_dict=False), pair.theirs(ids, **options, return_dict=False)
    assert isinstance(ours, tuple)
    assert len(ours) == len(theirs) == len(named) == 5
    assert list(named) == ["loss", "logits", "past_key_values", "hidden_states", "attentions"]
    assert torch.equal(ours[0], named.loss)
    assert torch.equal(ours[1], named["logits"])
    assert torch.equal(ours[1], named[1])
    assert torch.equal(ours[3][-1], named[3:][0][-1])
    assert_close(ours[0], theirs[0])
    assert_close(ours[1], theirs[1])
    by_config = make_ours("eager", return_dict=False)
    assert isinstance(by_config(ids), tuple)
    assert by_config(ids, return_dict=True).logits.shape == (2, 5, 99)


@torch.no_grad()
def test_use_cache() -> None:
    ids = random_ids(1, 4)
    model = make_ours()
    assert len(model(ids).past_key_values) == 2
    assert model(ids, use_cache=False).past_key_values is None
    model = make_ours(use_cache=False)
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 4


@torch.no_grad()
def test_logits_to_keep() -> None:
    pair = make_pair("sdpa")
    ids = random_ids(B, T)
    seen: list[torch.Size] = []
    pair.ours.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    whole = pair.ours(ids).logits
    for keep, rows in ((1, 1), (3, 3), (0, T), (T + 5, T), (torch.tensor([0, 4, 11]), 3), (torch.tensor([-1]), 1)):
        ours = pair.ours(ids, logits_to_keep=keep).logits
        assert ours.shape == (B, rows, 99)
        assert seen[-1] == (B, rows, 32), "logits were computed that nobody asked for"
        assert_close(ours, pair.theirs(ids, logits_to_keep=keep).logits)
        expected = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
        assert_close(ours, expected)


@torch.no_grad()
def test_logits_are_in_the_type_of_the_model() -> None:
    model = make_ours().to(torch.bfloat16)
    assert model(random_ids(1, 3)).logits.dtype == torch.bfloat16


# -- finished masks ------------------------------------------------------------------------------------


def causal(rows: int, length: int, padding: torch.Tensor | None = None) -> torch.Tensor:
    seen = torch.ones(rows, 1, length, length, dtype=torch.bool).tril()
    return seen if padding is None else seen & padding.bool()[:, None, None, :]


def as_numbers(seen: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_4d_mask_additive_and_boolean(attention: str) -> None:
    pair = make_pair(attention, num_key_value_heads=2)
    ids = random_ids(B, T)
    generator = torch.Generator().manual_seed(5)
    seen = torch.rand(B, 1, T, T, generator=generator) < 0.5
    seen |= torch.eye(T, dtype=torch.bool)  # not causal at all: it must be taken as it is
    theirs = pair.theirs(ids, attention_mask=as_numbers(seen)).logits
    assert_close(pair.ours(ids, attention_mask=as_numbers(seen)).logits, theirs)
    assert_close(pair.ours(ids, attention_mask=seen).logits, theirs)
    per_head = torch.rand(B, 4, T, T, generator=generator)  # numbers to add, different for every head
    ours = pair.ours(ids, attention_mask=per_head).logits
    assert_close(ours, pair.theirs(ids, attention_mask=per_head).logits)
    assert relative_error(ours, theirs) > 1e-2
    shared = as_numbers(seen[:1])
    assert_close(
        pair.ours(ids, attention_mask=shared).logits,
        pair.theirs(ids, attention_mask=shared.expand(B, -1, -1, -1)).logits,
    )


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_4d_causal_mask_is_the_2d_mask(attention: str) -> None:
    model = make_ours(attention)
    ids = random_ids(B, T)
    for side in SIDES:
        mask = padding_mask(B, T, side)
        real = slice(None) if mask is None else mask.bool()
        plain = model(ids, attention_mask=mask).logits
        assert_close(model(ids, attention_mask=causal(B, T, mask)).logits[real], plain[real])


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_shared_prefix(attention: str) -> None:
    # three answers to one question in one row: each sees the question and itself
    pair = make_pair(attention)
    question, answers = random_ids(1, 3), random_ids(3, 2, seed=9)
    separate = torch.cat([question.expand(3, -1), answers], dim=1)
    packed = torch.cat([question, answers.reshape(1, -1)], dim=1)
    seen = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    seen[..., :3] = True
    for start in (3, 5, 7):
        seen[..., start : start + 2, start : start + 2] = True
    seen &= torch.ones(9, 9, dtype=torch.bool).tril()
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 3, 4]])
    ours = pair.ours(packed, attention_mask=as_numbers(seen), position_ids=positions).logits
    assert_close(ours, pair.theirs(packed, attention_mask=as_numbers(seen), position_ids=positions).logits)
    assert_close(ours[0, [4, 6, 8]], pair.ours(separate).logits[:, -1])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_4d_mask_in_float32_for_a_model_in_less(attention: str, dtype: torch.dtype) -> None:
    # the most negative float32 is minus infinity there, and a row of those must not become NaN
    model = make_ours(attention, std=0.1).to(dtype)
    ids, mask = random_ids(B, T), padding_mask(B, T, "left")
    seen = causal(B, T, mask)
    wide = model(ids, attention_mask=as_numbers(seen, torch.float32)).logits
    narrow = model(ids, attention_mask=as_numbers(seen, dtype)).logits
    assert wide.isfinite().all()
    assert torch.equal(wide[mask.bool()], narrow[mask.bool()])


# -- loss ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_loss() -> None:
    pair = make_pair("eager")
    ids = random_ids(B, T)
    labels = ids.clone()
    labels[0, :5] = -100
    labels[2, -1] = -100
    for given in (ids, labels):
        for items in (None, 7, torch.tensor(11)):
            ours = pair.ours(ids, labels=given, num_items_in_batch=items).loss
            assert_close(ours, pair.theirs(ids, labels=given, num_items_in_batch=items).loss)
    assert pair.ours(ids).loss is None


@torch.no_grad()
def test_loss_is_in_float32_on_scaled_logits() -> None:
    model = make_ours().to(torch.bfloat16)
    ids = random_ids(2, 6)
    output = model(ids, labels=ids)
    assert output.loss.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
    assert_close(output.loss, expected)


# -- the decoder alone ---------------------------------------------------------------------------------


@torch.no_grad()
def test_base_model() -> None:
    pair = make_pair("sdpa")
    ids = random_ids(B, T)
    ours, theirs = pair.ours.model(ids), pair.theirs.model(ids)
    assert isinstance(pair.ours.model, CohereModel)
    assert list(ours) == list(theirs.keys()) == ["last_hidden_state", "past_key_values"]
    assert_close(ours.last_hidden_state, theirs.last_hidden_state)
    assert isinstance(pair.ours.model(ids, return_dict=False), tuple)


@torch.no_grad()
def test_names_of_the_weights() -> None:
    for fields in ({}, {"use_qk_norm": True, "attention_bias": True, "num_key_value_heads": 2}):
        pair = make_pair(**fields)
        ours = {name: tensor.shape for name, tensor in pair.ours.state_dict().items()}
        assert ours == {name: tensor.shape for name, tensor in pair.theirs.state_dict().items()}


@torch.no_grad()
def test_deterministic_and_a_row_alone_is_the_row_in_a_batch() -> None:
    for attention in ATTENTION:
        model = make_ours(attention, num_key_value_heads=2)
        ids, mask = random_ids(B, T), padding_mask(B, T, "left")
        batch = model(ids, attention_mask=mask).logits
        assert torch.equal(batch, model(ids, attention_mask=mask).logits)
        for row in range(B):
            length = int(mask[row].sum())
            assert_close(batch[row, -length:], model(ids[row : row + 1, -length:]).logits[0])


@torch.no_grad()
def test_what_pads_hold_changes_nothing() -> None:
    model = make_ours("sdpa")
    for side in ("left", "right"):
        mask = padding_mask(B, T, side)
        ids, others = random_ids(B, T), random_ids(B, T, seed=8)
        mixed = torch.where(mask.bool(), ids, others)
        real = mask.bool()
        assert_close(model(mixed, attention_mask=mask).logits[real], model(ids, attention_mask=mask).logits[real])


@torch.no_grad()
def test_the_pad_token_of_a_fresh_model_has_logit_zero() -> None:
    # its embedding row starts at zero and the head is tied: the published logits of such models show it
    torch.manual_seed(0)
    from_config = type(make_ours())(make_ours().config)
    assert (from_config(random_ids(2, 5)).logits[..., 0] == 0).all()
    assert (from_config(random_ids(2, 5)).logits[..., 1] != 0).all()


@torch.no_grad()
def test_unknown_fields_change_nothing() -> None:
    ids = random_ids(2, 5)
    expected = make_ours()(ids).logits
    for kind in ("absolute", "relative_key", "relative_key_query"):
        assert torch.equal(make_ours(position_embedding_type=kind)(ids).logits, expected)


@torch.no_grad()
def test_other_shapes_than_tiny() -> None:
    # a shape where head width, heads, groups, batch and length are all different and odd where they may be
    fields = TINY | {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 131}
    for attention in ATTENTION:
        pair = make_pair(attention, **fields)
        ids = random_ids(5, 1, vocabulary=131), random_ids(1, 33, vocabulary=131)
        for given in ids:
            assert_close(pair.ours(given).logits, pair.theirs(given).logits)
