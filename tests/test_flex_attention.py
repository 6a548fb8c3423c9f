"""flex_attention without a compiler, which is how torch runs it on a CPU unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity import TINY, assert_close, make_ours, make_pair, padding_mask, random_ids, relative_error
from quarterdeck import StaticCache
from quarterdeck.attention import AttentionMask
from quarterdeck.attention import flex as backend
from quarterdeck.attention.eager import eager_attention
from quarterdeck.attention.flex import flex_attention_backend
from quarterdeck.attention.sdpa import sdpa_attention
from quarterdeck.errors import UnsupportedOptionError
from test_attention import Case, cases

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors_for(case: Case, groups: int, seed: int, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(case.batch, 4, case.queries, width, generator=generator)
    key, value = torch.randn(2, case.batch, groups, case.keys, width, generator=generator)
    return query, key, value


@given(case=cases(), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # each new shape is traced: no shrinking
@torch.no_grad()
def test_flex_equals_eager(case: Case, groups: int, seed: int) -> None:
    tensors = tensors_for(case, groups, seed)
    ours, nothing = flex_attention_backend(*tensors, case.mask(), scale=0.3)
    assert nothing is None
    truth, _ = eager_attention(*tensors, case.mask(), scale=0.3)
    blind = ~case.brute_force().any(-1)[:, 0]  # rows that see nothing
    assert torch.allclose(ours.transpose(1, 2)[~blind], truth.transpose(1, 2)[~blind], atol=1e-5)
    assert not ours.transpose(1, 2)[blind].any()


@pytest.mark.parametrize("kind", ["numbers", "booleans"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)], ids=str)
@torch.no_grad()
def test_finished_masks(kind: str, shape: tuple[int, int]) -> None:
    case = Case(2, 5, 7, 2, None, None, None, None)
    tensors = tensors_for(case, 2, 0)
    numbers = torch.randn(*shape, 5, 7, generator=torch.Generator().manual_seed(1)) * 3
    numbers[..., 1:][numbers[..., 1:] < -2] = -math.inf
    mask = replace(case.mask(), explicit=numbers if kind == "numbers" else numbers > -1, _made={})
    ours, _ = flex_attention_backend(*tensors, mask, scale=0.3)
    truth, _ = eager_attention(*tensors, mask, scale=0.3)
    seen = mask.allowed().expand(2, 4, 5, 7)
    blind = ~seen.any(-1) if kind == "booleans" else torch.zeros(2, 4, 5, dtype=torch.bool)
    assert torch.allclose(ours[~blind], truth[~blind], atol=1e-5)


@torch.no_grad()
def test_several_blocks_of_128() -> None:
    length = 300
    documents = (torch.arange(length) // 90).expand(1, -1)
    for mask in (
        AttentionMask(length, length, torch.device("cpu"), documents=documents),
        AttentionMask(length, length, torch.device("cpu"), window=40),
        AttentionMask(100, length, torch.device("cpu"), start=length - 100),
    ):
        tensors = tensors_for(Case(1, mask.queries, length, 0, None, None, None, None), 2, 3)
        ours, _ = flex_attention_backend(*tensors, mask, scale=0.3)
        assert_close(ours, eager_attention(*tensors, mask, scale=0.3)[0])


@torch.no_grad()
def test_blocks_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = backend._blocks
    monkeypatch.setattr(backend, "_blocks", lambda *given_: made.append(given_) or plain(*given_))
    make_ours("flex_attention", num_hidden_layers=3)(random_ids(2, 6))
    assert len(made) == 1


def test_gradients_on_a_cpu_are_those_of_sdpa() -> None:
    case = Case(2, 5, 5, 0, None, [[False, True, True, True, True], [True] * 5], None, None)
    found = []
    for attend in (flex_attention_backend, sdpa_attention):
        tensors = [tensor.requires_grad_() for tensor in tensors_for(case, 2, 0)]
        output, _ = attend(*tensors, case.mask(), scale=0.3)
        found.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_training_with_dropout_is_refused() -> None:
    model = make_ours("flex_attention", attention_dropout=0.1)
    ids = random_ids(1, 4)
    model(ids)
    with pytest.raises(UnsupportedOptionError, match=r"has no dropout: set config.attention_dropout to 0.*'sdpa'"):
        model.train()(ids)


# -- the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [None, "left", "right"])
@torch.no_grad()
def test_logits_equal_those_of_transformers(side: str | None) -> None:
    # with its eager attention: compiling its flex_attention for a CPU takes longer than all that is here
    pair = make_pair("eager", num_key_value_heads=2, use_qk_norm=True)
    pair.ours.set_attn_implementation("flex_attention")
    ids, mask = random_ids(3, 11), padding_mask(3, 11, side)
    real = slice(None) if mask is None else mask.bool()
    theirs = pair.theirs(ids, attention_mask=mask).logits
    assert_close(pair.ours(ids, attention_mask=mask).logits[real], theirs[real])


@pytest.mark.parametrize("cache", ["dynamic", "static", "static_with_places"])
@torch.no_grad()
def test_steps_with_a_cache(cache: str) -> None:
    model, plain = make_ours("flex_attention", num_key_value_heads=2), make_ours("eager", num_key_value_heads=2)
    ids, mask = random_ids(2, 9), padding_mask(2, 9, "left")
    assert mask is not None
    stored: Any = None if cache == "dynamic" else StaticCache(model.config, max_cache_len=14)
    whole = plain(ids, attention_mask=mask).logits
    for begin, end in ((0, 5), (5, 8), (8, 9)):
        places = torch.arange(begin, end) if cache == "static_with_places" else None
        output = model(ids[:, begin:end], mask[:, :end], past_key_values=stored, cache_position=places, use_cache=True)
        stored = output.past_key_values
        real = mask[:, begin:end].bool()
        assert_close(output.logits[real], whole[:, begin:end][real])


@torch.no_grad()
def test_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, plain = (make_ours(name, std=0.1).to(dtype) for name in ("flex_attention", "eager"))
        assert relative_error(model(random_ids(2, 7)).logits, plain(random_ids(2, 7)).logits) < 2e-2


@pytest.mark.parametrize("as_on_a_gpu", [True, False])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # inside torch's tracing
@torch.no_grad()
def test_a_whole_program_without_breaks(as_on_a_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if as_on_a_gpu:
        monkeypatch.setattr(backend, "_is_beyond_cpus", lambda *_: False)
    torch._dynamo.reset()
    model = make_ours("flex_attention", num_key_value_heads=2)
    ids, mask = random_ids(2, 6), padding_mask(2, 6, "left")
    program = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert_close(program(ids, attention_mask=mask).logits[:, 3:], model(ids, attention_mask=mask).logits[:, 3:])


def test_greedy_tokens_are_the_same_with_every_backend() -> None:
    fields = TINY | {"num_key_value_heads": 2, "eos_token_id": None}
    pair = make_pair("sdpa", **fields)
    ids, mask = random_ids(2, 6), padding_mask(2, 6, "left")
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    theirs = pair.theirs.generate(ids, **options)
    for name in ("eager", "sdpa", "flex_attention"):
        pair.ours.set_attn_implementation(name)
        assert torch.equal(pair.ours.generate(ids, **options), theirs), name
        assert torch.equal(pair.ours.generate(ids, cache_implementation="static", **options), theirs), name
