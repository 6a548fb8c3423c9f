"""Draws: seeds, generators, distributions, and what the filters promise whatever the scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation import sampling
from quarterdeck.generation.warpers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from quarterdeck.model import CohereForCausalLM

NO_IDS = torch.empty(0, 0, dtype=torch.int64)
V = 12


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return CohereForCausalLM(config).eval()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic over the outcomes that can happen."""
    expected = probabilities * counts.sum()
    possible = probabilities > 0
    assert int(counts[~possible].sum()) == 0
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


def critical(freedom: int) -> float:
    """The value that chi-square exceeds once in 100,000 times (Wilson and Hilferty, 1931); z = 4.265."""
    share = 2 / (9 * freedom)
    return freedom * (1 - share + 4.265 * math.sqrt(share)) ** 3


@pytest.mark.parametrize("source", ["seed", "generator", "global"])
@pytest.mark.parametrize("options", [{"top_k": 0}, {"temperature": 0.6, "top_k": 6}, {"top_k": 0, "top_p": 0.7}])
def test_draws_have_the_distribution_of_the_scores(
    model: CohereForCausalLM, source: str, options: dict[str, float]
) -> None:
    prompt = torch.tensor([[3, 5, 8]])
    draws = 6000
    torch.manual_seed(11)
    randomness = {"seed": 11} if source == "seed" else {}
    if source == "generator":
        randomness = {"generator": torch.Generator().manual_seed(11)}
    output = model.generate(
        prompt,
        do_sample=True,
        max_new_tokens=1,
        num_return_sequences=draws,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
        **randomness,
    )
    probabilities = output.scores[0][0].double().softmax(-1)
    counts = torch.bincount(output.sequences[:, -1], minlength=V).double()
    freedom = int((probabilities > 0).sum()) - 1
    assert freedom >= 2
    assert chi_square(counts, probabilities) < critical(freedom)
    uniform = torch.full((V,), 1 / V, dtype=torch.float64)
    assert chi_square(counts, uniform) > critical(V - 1)  # the test can tell distributions apart


def test_the_same_seed_gives_the_same_tokens_and_leaves_torch_alone(model: CohereForCausalLM) -> None:
    prompt = torch.tensor([[3, 5, 8]])
    state = torch.get_rng_state()
    first = model.generate(prompt, do_sample=True, max_new_tokens=30, seed=4)
    assert torch.get_rng_state().equal(state)
    assert model.generate(prompt, do_sample=True, max_new_tokens=30, seed=4).equal(first)
    assert not model.generate(prompt, do_sample=True, max_new_tokens=30, seed=5).equal(first)
    generator = torch.Generator().manual_seed(4)
    assert model.generate(prompt, do_sample=True, max_new_tokens=30, generator=generator).equal(first)
    assert not model.generate(prompt, do_sample=True, max_new_tokens=30, generator=generator).equal(first)


def test_seed_and_generator_together_are_refused(model: CohereForCausalLM) -> None:
    with pytest.raises(InputError, match="seed and generator"):
        model.generate(torch.tensor([[3]]), do_sample=True, seed=1, generator=torch.Generator())


def test_a_generator_of_another_device_is_refused() -> None:
    with pytest.raises(InputError, match="device='cuda'"):
        sampling.make_generator(None, torch.Generator(), torch.device("cuda"))


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert sampling.greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


# ---------------------------------------------------------------------------------- invariants

number = st.floats(-30, 30, width=32)
rows = st.lists(st.lists(number | st.just(-math.inf), min_size=V - 1, max_size=V - 1), min_size=1, max_size=3).map(
    lambda lists: torch.tensor([[0.5, *items] for items in lists])
)  # one score is finite, so a draw is possible
FILTERS: list[Callable[[float], object]] = [
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    lambda share: TopKLogitsWarper(1 + int(share * 10)),
]


@settings(deadline=None, max_examples=40)
@given(scores=rows, share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
@pytest.mark.parametrize("make", FILTERS)
def test_filters_only_remove_and_leave_something(
    make: Callable[[float], Callable[[Tensor, Tensor], Tensor]], scores: Tensor, share: float, seed: int
) -> None:
    kept = make(share)(NO_IDS, scores)
    left = kept > -math.inf
    assert kept[left].equal(scores[left])
    assert bool(left.any(dim=-1).all())
    tokens = sampling.multinomial(kept, torch.Generator().manual_seed(seed))
    assert bool(left.gather(1, tokens[:, None]).all())


@settings(deadline=None, max_examples=40)
@given(scores=rows, share=st.floats(0.01, 0.99))
@pytest.mark.parametrize("make", [f for f in FILTERS if f is not TypicalLogitsWarper])
def test_filters_keep_the_most_likely(
    make: Callable[[float], Callable[[Tensor, Tensor], Tensor]], scores: Tensor, share: float
) -> None:
    kept = make(share)(NO_IDS, scores)
    assert kept.amax(dim=-1).equal(scores.amax(dim=-1))
    smallest = kept.masked_fill(kept == -math.inf, math.inf).amin(dim=-1, keepdim=True)
    assert bool((scores.masked_fill(kept > -math.inf, -math.inf) <= smallest).all())


@settings(deadline=None, max_examples=60)
@given(scores=rows, top_p=st.floats(0.05, 0.95))
def test_top_p_keeps_enough_and_no_more(scores: Tensor, top_p: float) -> None:
    probabilities = scores.double().softmax(-1)
    left = TopPLogitsWarper(top_p)(NO_IDS, scores) > -math.inf
    mass = (probabilities * left).sum(dim=-1)
    assert bool((mass >= top_p - 1e-5).all())
    least = probabilities.masked_fill(~left, math.inf).amin(dim=-1)
    assert bool(((mass - least < top_p + 1e-5) | (left.sum(dim=-1) == 1)).all())


@settings(deadline=None, max_examples=40)
@given(scores=rows, k=st.integers(1, V))
def test_top_k_keeps_k_and_their_equals(scores: Tensor, k: int) -> None:
    kept = TopKLogitsWarper(k)(NO_IDS, scores)
    finite = (scores > -math.inf).sum(dim=-1)
    count = (kept > -math.inf).sum(dim=-1)
    assert bool((count >= finite.clamp(max=k)).all())
    assert bool((count <= finite).all())


@settings(deadline=None, max_examples=40)
@given(scores=rows, temperature=st.floats(0.1, 10))
def test_temperature_keeps_the_order(scores: Tensor, temperature: float) -> None:
    warped = TemperatureLogitsWarper(temperature)(NO_IDS, scores)
    order = scores.argsort(dim=-1, stable=True)
    assert bool((warped.gather(1, order).diff(dim=-1).nan_to_num(0.0) >= 0).all())
