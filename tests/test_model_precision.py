"""bfloat16 and float16: no less exact than transformers, and rotary frequencies that no cast can round."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parity import ROPES, TINY, make_low_precision_pair, make_ours, padding_mask, random_ids, relative_error
from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.model import CohereLayerNorm, rotate
from quarterdeck.rope import rope_frequencies

ATTENTION = ("eager", "sdpa")
HALVES = (torch.bfloat16, torch.float16)
EPSILON = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
B, T = 3, 24


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("fields", [{}, {"use_qk_norm": True, "num_key_value_heads": 2}], ids=["plain", "plus"])
@torch.no_grad()
def test_as_exact_as_transformers(tmp_path: Path, fields: dict[str, Any], dtype: torch.dtype, attention: str) -> None:
    exact, rounded = make_low_precision_pair(tmp_path, dtype, attention, hidden_size=64, **fields)
    ids = random_ids(B, T)
    for side in (None, "left", "right"):
        mask = padding_mask(B, T, side)
        real = slice(None) if mask is None else mask.bool()
        truth = exact.ours(ids, attention_mask=mask).logits[real]
        ours = rounded.ours(ids, attention_mask=mask).logits[real]
        theirs = rounded.theirs(ids, attention_mask=mask).logits[real]
        assert ours.dtype == theirs.dtype == dtype
        scale = rms(truth)
        assert rms(ours - truth) <= 1.15 * rms(theirs - truth)
        assert rms(ours - truth) <= 4 * EPSILON[dtype] * scale
        assert rms(ours.double() - theirs.double()) <= 4 * EPSILON[dtype] * scale


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_eager_rounds_where_transformers_rounds(tmp_path: Path, dtype: torch.dtype) -> None:
    # before errors grow: the states after one layer are the same numbers but for a few last bits
    _, rounded = make_low_precision_pair(tmp_path, dtype, "eager", num_hidden_layers=1, num_key_value_heads=2)
    ids = random_ids(B, T)
    ours = rounded.ours(ids, output_attentions=True)
    theirs = rounded.theirs(ids, output_attentions=True)
    assert (ours.attentions[0] != theirs.attentions[0]).float().mean() < 0.02
    assert (ours.logits != theirs.logits).float().mean() < 0.15


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_chunked_equals_whole_within_rounding(dtype: torch.dtype) -> None:
    for attention in ATTENTION:
        model = make_ours(attention, std=0.1, num_key_value_heads=2).to(dtype)
        ids = random_ids(B, T)
        first = model(ids[:, :20])
        rest = model(ids[:, 20:], past_key_values=first.past_key_values).logits
        whole = model(ids).logits
        assert first.past_key_values[0][0].dtype == dtype
        assert rms(rest.float() - whole[:, 20:].float()) <= 4 * EPSILON[dtype] * rms(whole)


# -- frequencies ---------------------------------------------------------------------------------------

CASTS: dict[str, Callable[[CohereForCausalLM], CohereForCausalLM]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to": lambda model: model.to(torch.bfloat16),
    "there_and_back": lambda model: model.to(torch.bfloat16).float(),
    "deepcopy": lambda model: copy.deepcopy(model.half()),
    "pickle": lambda model: pickle.loads(pickle.dumps(model.half())),
    "to_empty": lambda model: model.half().to_empty(device="cpu"),
    "meta_and_back": lambda model: model.to("meta").half().to_empty(device="cpu"),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_frequencies_survive(cast: str) -> None:
    for fields in ({}, ROPES["yarn"], ROPES["llama3_16"]):
        model = make_ours(**fields)
        rotary = CASTS[cast](model).model.rotary_emb
        assert rotary.inv_freq.dtype == torch.float32
        assert rotary.inv_freq.device.type == "cpu"
        assert torch.equal(rotary.inv_freq, rope_frequencies(model.config).inverse)
        assert rotary.attention_scaling == rope_frequencies(model.config).scale


@pytest.mark.parametrize("case", ROPES)
def test_frequencies_survive_construction_without_memory(case: str) -> None:
    config = CohereConfig(**(TINY | ROPES[case]))
    with torch.device("meta"):
        model = CohereForCausalLM(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu").to(torch.bfloat16)
    model.load_state_dict(make_ours(**ROPES[case]).state_dict())
    assert torch.equal(model.model.rotary_emb.inv_freq, rope_frequencies(config).inverse)
    expected = make_ours(**ROPES[case]).to(torch.bfloat16)
    ids = random_ids(1, 20)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, expected(ids).logits)


def test_frequencies_are_no_part_of_the_checkpoint() -> None:
    model = make_ours()
    assert not [name for name in model.state_dict() if "freq" in name]
    assert not list(model.buffers())


@torch.no_grad()
def test_a_cast_model_stays_right_at_large_positions() -> None:
    # rounded frequencies would turn tokens 60,000 apart by radians
    ids, positions = random_ids(1, 4), torch.tensor([[0, 1, 60_000, 60_001]])
    exact = make_ours(std=0.1, rope_theta=8e6)
    truth = exact(ids, position_ids=positions, attention_mask=torch.ones(1, 4)).logits
    for dtype in HALVES:
        cast = copy.deepcopy(exact).to(dtype)
        ours = cast(ids, position_ids=positions, attention_mask=torch.ones(1, 4)).logits
        assert rms(ours - truth) <= 4 * EPSILON[dtype] * rms(truth)


# -- tables --------------------------------------------------------------------------------------------


def exact_tables(config: CohereConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Everything in float64, from the definition."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = positions[..., None].double() * config.rope_theta**-exponents
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("theta", [10_000.0, 8e6, 75e6])
def test_cos_and_sin_at_the_end_of_the_context(theta: float) -> None:
    config = CohereConfig(**(TINY | {"head_dim": 128, "rope_theta": theta}))
    positions = torch.tensor([[0, 1, 8191, 8192, 131_070, 131_071]])
    tables = CohereForCausalLM(config).model.rotary_emb(positions, torch.float32)
    for ours, truth in zip(tables, exact_tables(config, positions), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == (1, 6, 64)
        error = (ours.double() - truth).abs().amax(-1)[0]
        assert error[0] == 0
        assert error[1] < 2e-7
        # an angle of 131071 is known to half a unit of its last place, 2 ** -7 / 2, and a frequency to 2 ** -24
        assert error.max() < 131_071 * 2**-24 * 2


@pytest.mark.parametrize("dtype", HALVES)
def test_tables_are_rounded_to_the_activations_unless_asked_otherwise(dtype: torch.dtype) -> None:
    positions = torch.arange(0, 131_072, 997)[None]
    rounded = CohereConfig(**TINY)
    kept = CohereConfig(**TINY, rope_table_dtype="float32")
    exact = CohereForCausalLM(kept).model.rotary_emb(positions, torch.float32)
    for config, expected in ((rounded, [table.to(dtype) for table in exact]), (kept, exact)):
        tables = CohereForCausalLM(config).model.rotary_emb(positions, dtype)
        for ours, wanted in zip(tables, expected, strict=True):
            assert ours.dtype == wanted.dtype
            assert torch.equal(ours, wanted)


def rotate_exactly(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(pairs).flatten(-2)


@torch.no_grad()
def test_exact_tables_are_more_exact() -> None:
    # a query and a key 5 apart at the end of the context: their product should be that of 0 and 5
    heads = torch.randn(2, 1, 4000, 1, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    errors = {}
    for kind in ("activation", "float32"):
        config = CohereConfig(**(TINY | {"head_dim": 128}), rope_table_dtype=kind)
        rotary = CohereForCausalLM(config).model.rotary_emb
        tables = [rotary(torch.tensor([[position]]), torch.bfloat16) for position in (131_066, 131_071)]
        query, key = (rotate(head, *table).double() for head, table in zip(heads, tables, strict=True))
        truth = heads[0].double() * rotate_exactly(heads[1].double(), *exact_tables(config, torch.tensor([[5]])))
        errors[kind] = rms((query * key).sum(-1) - truth.sum(-1))
    assert errors["float32"] < 0.9 * errors["activation"]


@torch.no_grad()
def test_table_type_makes_no_difference_in_float32() -> None:
    ids = random_ids(2, 12)
    assert torch.equal(make_ours(rope_table_dtype="float32")(ids).logits, make_ours()(ids).logits)


@torch.no_grad()
def test_norms_are_as_exact_as_their_type_allows() -> None:
    # a large mean is where a norm in low precision goes wrong
    model = make_ours(use_qk_norm=True)
    x = 30 + torch.randn(64, 7, 32, generator=torch.Generator().manual_seed(0))
    heads = x.unflatten(-1, (4, 8))
    for norm, given in ((model.model.norm, x), (model.model.layers[0].self_attn.q_norm, heads)):
        for dtype in (*HALVES, torch.float32):
            rounded = given.to(dtype)
            weight = norm.weight.to(dtype).double()
            wide = rounded.double()
            deviation = wide - wide.mean(-1, keepdim=True)
            truth = weight * deviation / (deviation.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            ours = copy.deepcopy(norm).to(dtype)(rounded)
            assert ours.dtype == dtype
            limit = {**EPSILON, torch.float32: 4e-6}[dtype]
            assert relative_error(ours, truth) <= limit


@pytest.mark.parametrize("shape", [(32,), (4, 32)], ids=["all", "per_head"])
@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_a_norm_with_an_exact_weight_rounds_once(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    # a weight kept in float32 in a model of 16 bits: rounding it first would err by its last bit everywhere
    generator = torch.Generator().manual_seed(0)
    norm = CohereLayerNorm(shape, 1e-5)
    norm.weight.copy_(1 + torch.rand(shape, generator=generator) / 3)
    x = torch.randn(50, *shape, generator=generator).to(dtype)
    wide = x.double()
    deviation = wide - wide.mean(-1, keepdim=True)
    truth = norm.weight.double() * deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    ours = norm(x)
    assert ours.dtype == dtype
    assert (ours != truth.to(dtype)).float().mean() < 0.002  # ties that float32 breaks the other way
