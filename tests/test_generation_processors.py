"""Each processor and warper against the class of the same name in transformers, on random scores."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.generation import processors as ours_processors
from quarterdeck.generation import warpers as ours_warpers
from quarterdeck.generation.processors import LogitsProcessorList, SequenceBiasLogitsProcessor

V = 60


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    return pytest.importorskip("transformers.generation.logits_process")


def scores_and_ids(seed: int, *, ties: bool = False, holes: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, V, generator=generator) * 3
    if ties:
        scores = scores.round()
    if holes:
        scores[0, :50] = -math.inf
        scores[1, 10:] = -math.inf
    return torch.randint(0, V, (3, 12), generator=generator), scores


def case(name: str, *args: object, theirs_args: tuple[object, ...] | None = None) -> tuple[str, tuple, tuple]:
    return name, args, args if theirs_args is None else theirs_args


PROCESSORS = [
    case("SequenceBiasLogitsProcessor", {(3,): 2.5, (5, 7): -4.0, (1, 2, 3): 9.0}),
    case("SequenceBiasLogitsProcessor", [[[3], 2.5], [[5, 7], -4.0]]),
    case("NoBadWordsLogitsProcessor", [[4], [8], [1, 9], [2, 3, 4]], [4]),
    case("RepetitionPenaltyLogitsProcessor", 1.3),
    case("RepetitionPenaltyLogitsProcessor", 0.7),
    case("NoRepeatNGramLogitsProcessor", 1),
    case("NoRepeatNGramLogitsProcessor", 2),
    case("NoRepeatNGramLogitsProcessor", 3),
    case("NoRepeatNGramLogitsProcessor", 12),
    case("NoRepeatNGramLogitsProcessor", 13),
    case("NoRepeatNGramLogitsProcessor", 40),
    case("MinLengthLogitsProcessor", 13, [2, 5]),
    case("MinLengthLogitsProcessor", 12, [2, 5]),
    case("MinLengthLogitsProcessor", 13, [2, 255001]),
    case("MinNewTokensLengthLogitsProcessor", 10, 3, 7),
    case("MinNewTokensLengthLogitsProcessor", 10, 2, 7),
    case("ForcedBOSTokenLogitsProcessor", 4),
    case("ForcedEOSTokenLogitsProcessor", 13, 5),
    case("ForcedEOSTokenLogitsProcessor", 13, [5, 6]),
    case("ForcedEOSTokenLogitsProcessor", 14, 5),
    case("InfNanRemoveLogitsProcessor"),
    case("ExponentialDecayLengthPenalty", (4, 1.2), [3, 4], 5),
    case("ExponentialDecayLengthPenalty", (9, 1.2), [3, 4], 5),
    case("SuppressTokensLogitsProcessor", [1, 2, 59]),
    case("SuppressTokensAtBeginLogitsProcessor", [1, 2], 12),
    case("SuppressTokensAtBeginLogitsProcessor", [1, 2], 11),
]
WARPERS = [
    case("TemperatureLogitsWarper", 0.3),
    case("TemperatureLogitsWarper", 1.9),
    case("TopKLogitsWarper", 1),
    case("TopKLogitsWarper", 7),
    case("TopKLogitsWarper", 1000),
    *(case("TopPLogitsWarper", p) for p in (0.05, 0.5, 0.9, 0.999)),
    *(case("MinPLogitsWarper", p) for p in (0.0, 0.05, 0.6, 1.0)),
    *(case("TypicalLogitsWarper", p) for p in (0.1, 0.5, 0.95)),
    *(case("EpsilonLogitsWarper", p) for p in (1e-3, 0.05, 0.9)),
    *(case("EtaLogitsWarper", p) for p in (1e-3, 0.05, 0.9)),
    case("LogitNormalization"),
]


@pytest.mark.parametrize(("name", "args", "their_args"), PROCESSORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_processor_equals_transformers(
    theirs: ModuleType, name: str, args: tuple, their_args: tuple, seed: int
) -> None:
    ids, scores = scores_and_ids(seed)
    ids[:, -1] = ids[:, -5]  # so that some n-grams and sequences repeat
    ids[0, -2:] = torch.tensor([1, 2])
    ids[1, -1] = 5
    ids[2] = 9
    before = scores.clone()
    ours = getattr(ours_processors, name)(*args)(ids, scores)
    assert torch.equal(scores, before)
    assert torch.equal(ours, getattr(theirs, name)(*their_args)(ids, scores.clone()))


@pytest.mark.parametrize(("name", "args", "their_args"), WARPERS)
@pytest.mark.parametrize(("ties", "holes"), [(False, False), (True, False), (False, True), (True, True)])
def test_warper_equals_transformers(
    theirs: ModuleType, name: str, args: tuple, their_args: tuple, ties: bool, holes: bool
) -> None:
    for seed in range(4):
        ids, scores = scores_and_ids(seed, ties=ties, holes=holes)
        before = scores.clone()
        ours = getattr(ours_warpers, name)(*args)(ids, scores)
        assert torch.equal(scores, before)
        assert torch.equal(ours, getattr(theirs, name)(*their_args)(ids, scores.clone()))


@pytest.mark.parametrize("top_p", [0.1, 0.7, 0.95])
def test_top_p_on_a_small_support_equals_sorting_everything(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(4, 5000, generator=generator) * 4).bfloat16().float()  # bf16: many exact ties
    few = ours_warpers.TopKLogitsWarper(50)(torch.empty(0), scores)
    warper = ours_warpers.TopPLogitsWarper(top_p)
    slow = few.masked_fill(warper._outside(few), -math.inf)
    fast = warper(torch.empty(0), few)
    # torch's sort is not stable: among exactly equal scores at the border either may be the one that is cut
    assert torch.equal(fast.sort(dim=-1).values, slow.sort(dim=-1).values)
    assert (slow > -math.inf).sum() < (few > -math.inf).sum()


def test_invalid_values_are_replaced(theirs: ModuleType) -> None:
    scores = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]])
    ids = torch.zeros(1, 1, dtype=torch.int64)
    ours = ours_processors.InfNanRemoveLogitsProcessor()(ids, scores)
    assert torch.equal(ours, theirs.InfNanRemoveLogitsProcessor()(ids, scores))


def test_forced_bos_acts_on_a_prompt_of_one_token(theirs: ModuleType) -> None:
    ids, scores = scores_and_ids(0)
    ours = ours_processors.ForcedBOSTokenLogitsProcessor(4)(ids[:, :1], scores)
    assert torch.equal(ours, theirs.ForcedBOSTokenLogitsProcessor(4)(ids[:, :1], scores))


def test_processors_accept_an_empty_prompt() -> None:
    _, scores = scores_and_ids(0)
    empty = torch.empty(3, 0, dtype=torch.int64)
    for name, args, _ in PROCESSORS:
        assert getattr(ours_processors, name)(*args)(empty, scores).shape == scores.shape


def test_biased_token_outside_the_vocabulary_is_an_error() -> None:
    ids, scores = scores_and_ids(0)
    with pytest.raises(InputError, match=r"\[60\].*60"):
        SequenceBiasLogitsProcessor({(60,): 1.0})(ids, scores)


def test_list_runs_in_order() -> None:
    ids, scores = scores_and_ids(0)
    chain = LogitsProcessorList([lambda ids, scores: scores + 1, lambda ids, scores: scores * 2])
    assert torch.equal(chain(ids, scores), (scores + 1) * 2)
