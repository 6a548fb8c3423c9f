"""Guessing while sampling: drawn texts have the distribution of the model, whatever the drafts are like."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Pair
from quarterdeck.generation.candidates import Draft, DraftLength
from quarterdeck.generation.core import Plan
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.processors import LogitsProcessorList
from quarterdeck.generation.speculative import accept_or_redraw, speculative_steps
from quarterdeck.generation.stopping import MaxLengthCriteria, StoppingCriteriaList
from quarterdeck.generation.warpers import TemperatureLogitsWarper, TopKLogitsWarper
from speculation_support import Assistants, Counted, assistants, guessing, pair, prompt

__all__ = ["assistants", "pair"]  # fixtures

WORDS, NEW = 3, 4


class Bigrams:
    """A model that looks at one token: its distributions are the rows of a table."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(seed))
        self.config: Any = SimpleNamespace(context_length=99, rope_scaling=None)

    def get_input_embeddings(self) -> Any:
        raise AssertionError("prompts are ids")

    def __call__(self, input_ids: Tensor, logits_to_keep: int, **_: Any) -> Any:
        logits = self.table[input_ids[:, -logits_to_keep:]]
        return SimpleNamespace(logits=logits, attentions=None, hidden_states=None)


def sampled(runs: int, warpers: list[Any]) -> Iterator[tuple[int, ...]]:
    judge, assistant = Bigrams(0), Bigrams(1)
    generator = torch.Generator().manual_seed(4)
    plan = Plan(
        LogitsProcessorList(warpers),
        StoppingCriteriaList([MaxLengthCriteria(1 + NEW)]),
        max_length=1 + NEW,
        sample=True,
        generator=generator,
    )
    begin = Prompt(torch.tensor([[2]]))
    for _ in range(runs):
        source = Draft(assistant, begin, plan, plan.processors, (), DraftLength(2))
        *_, last = speculative_steps(judge, begin, None, plan, source)
        yield tuple(last.input_ids[0, 1:].tolist())


WARPERS: dict[str, list[Any]] = {"plain": [], "warped": [TemperatureLogitsWarper(0.7), TopKLogitsWarper(2)]}


def chi_square(counts: Counter[tuple[int, ...]], chances: Tensor) -> tuple[float, int]:
    """Pearson's statistic of whole texts and its degrees of freedom; texts of fewer than 5 expected count as one."""
    runs, table = counts.total(), chances.tolist()
    chi, cells, rare, rare_expected = 0.0, 0, 0, 0.0
    for text in itertools.product(range(WORDS), repeat=NEW):
        expected = runs * math.prod(table[a][b] for a, b in itertools.pairwise((2, *text)))
        assert expected > 0 or not counts[text], text
        if expected < 5:
            rare, rare_expected = rare + counts[text], rare_expected + expected
        else:
            chi, cells = chi + (counts[text] - expected) ** 2 / expected, cells + 1
    if rare_expected:
        chi, cells = chi + (rare - rare_expected) ** 2 / rare_expected, cells + 1
    return chi, cells - 1


@pytest.mark.parametrize("warpers", WARPERS)
def test_drawn_texts_have_the_distribution_of_the_model(warpers: str) -> None:
    """The drafts come from quite another distribution."""
    chances = LogitsProcessorList(WARPERS[warpers])(torch.zeros(WORDS, 1, dtype=torch.int64), Bigrams(0).table)
    chi, freedom = chi_square(Counter(sampled(900, WARPERS[warpers])), chances.softmax(dim=-1))
    assert freedom >= 8
    assert chi < freedom + 3.5 * math.sqrt(2 * freedom), (chi, freedom)  # one in a thousand is beyond


def test_a_token_is_accepted_as_often_as_both_distributions_agree() -> None:
    """With probability sum(min(p, q)), the most that any rule can reach; and what comes out has p."""
    p, q = torch.tensor([[0.5, 0.3, 0.2, 0.0]]), torch.tensor([[0.1, 0.6, 0.2, 0.1]])
    generator = torch.Generator().manual_seed(1)
    counts, accepted, runs = torch.zeros(4), 0, 2000
    for candidate in torch.multinomial(q[0], runs, replacement=True, generator=generator).tolist():
        token, stuck = accept_or_redraw(p.log(), q, candidate, generator)
        assert not stuck
        counts[token] += 1
        accepted += int(token) == candidate
    assert abs(accepted / runs - 0.6) < 0.035
    torch.testing.assert_close(counts / runs, p[0], rtol=0, atol=0.035)


def test_looking_up_draws_the_very_tokens_of_plain_sampling(pair: Pair) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": None, "do_sample": True, "seed": 3, "top_k": 2}
    plain = pair.ours.generate(prompt(), **options)
    assert pair.ours.generate(prompt(), prompt_lookup_num_tokens=4, **options).tolist() == plain.tolist()


def test_a_twin_that_draws_is_almost_always_right(pair: Pair, assistants: Assistants) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": None, "do_sample": True, "seed": 3}
    with Counted(pair.ours) as counted:
        first = pair.ours.generate(prompt(), temperature=1.7, **options, **guessing("twin", assistants))
    assert counted.runs <= 7
    again = pair.ours.generate(prompt(), temperature=1.7, **options, **guessing("twin", assistants))
    assert first.tolist() == again.tolist()
