"""The masking rule against loops, and the backends against the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck.attention import AttentionMask, attention_names, check_attention, get_attention
from quarterdeck.attention.eager import eager_attention
from quarterdeck.attention.flash import flash_attention
from quarterdeck.attention.flex import flex_attention_backend
from quarterdeck.attention.mask import make_mask, packed_documents
from quarterdeck.attention.sdpa import sdpa_attention
from quarterdeck.errors import UnsupportedOptionError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """Plain numbers, so that the rule can be followed by hand."""

    batch: int
    queries: int
    keys: int
    start: int
    positions: list[int] | None
    padding: list[list[bool]] | None
    documents: list[list[int]] | None
    window: int | None

    def mask(self) -> AttentionMask:
        return AttentionMask(
            self.queries,
            self.keys,
            CPU,
            start=self.start,
            positions=None if self.positions is None else torch.tensor(self.positions),
            padding=None if self.padding is None else torch.tensor(self.padding),
            documents=None if self.documents is None else torch.tensor(self.documents),
            window=self.window,
        )

    def sees(self, row: int, query: int, key: int) -> bool:
        """The text at the top of mask.py, word by word."""
        at = self.start + query if self.positions is None else self.positions[query]
        if key > at:
            return False
        if self.window is not None and at - key >= self.window:
            return False
        if self.padding is not None and not (key < len(self.padding[row]) and self.padding[row][key]):
            return False
        return self.documents is None or self.documents[row][at] == self.documents[row][key]

    def brute_force(self) -> torch.Tensor:
        return torch.tensor(
            [
                [[[self.sees(row, query, key) for key in range(self.keys)] for query in range(self.queries)]]
                for row in range(self.batch)
            ]
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, queries, start = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(0, 5))
    spare = draw(st.sampled_from([0, 0, 3]))  # the end of a cache of fixed size
    keys = start + queries + spare
    known = draw(st.integers(start + queries, keys))
    places = st.lists(st.integers(0, keys - 1), min_size=queries, max_size=queries)
    padding = st.lists(st.lists(st.booleans(), min_size=known, max_size=known), min_size=batch, max_size=batch)
    numbers = st.lists(st.lists(st.integers(0, 2), min_size=keys, max_size=keys), min_size=batch, max_size=batch)
    return Case(
        batch,
        queries,
        keys,
        start,
        draw(st.none() | places),
        draw(st.none() | padding),
        draw(st.none() | numbers),
        draw(st.none() | st.integers(1, 6)),
    )


@given(case=cases())
@settings(max_examples=120, deadline=None)
def test_rule_equals_loops(case: Case) -> None:
    expected = case.brute_force()
    mask = case.mask()
    allowed = mask.allowed()
    assert allowed.dtype == torch.bool
    assert allowed.shape[1:] == (1, case.queries, case.keys)
    assert torch.equal(allowed.expand_as(expected), expected)
    added = mask.additive(torch.float16).expand_as(expected)
    assert torch.equal(added == 0, expected)
    assert (added[~expected] == torch.finfo(torch.float16).min).all()
    if mask.sees_all:
        assert expected.all()
    if mask.is_square_causal:
        assert torch.equal(expected, torch.ones_like(expected).tril())
    assert mask.allowed() is allowed, "made once"


@given(case=cases(), groups=st.sampled_from([1, 2, 4]), width=st.sampled_from([2, 6, 8]), seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_sdpa_equals_eager_equals_the_formula(case: Case, groups: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(case.batch, 4, case.queries, width, generator=generator)
    key, value = torch.randn(2, case.batch, groups, case.keys, width, generator=generator)
    scale = width**-0.5
    by_rule, weights = eager_attention(query, key, value, case.mask(), scale=scale)
    fused, nothing = sdpa_attention(query, key, value, case.mask(), scale=scale)
    assert nothing is None
    assert weights.shape == (case.batch, 4, case.queries, case.keys)
    seen = case.brute_force()
    for row in range(case.batch):
        for head in range(4):
            for at in range(case.queries):
                keys = seen[row, 0, at]
                if not keys.any():
                    continue  # a row that sees nothing: nobody's promise
                group = head * groups // 4
                scores = key[row, group].double() @ query[row, head, at].double() * scale
                chances = torch.softmax(scores.masked_fill(~keys, -math.inf), dim=0)
                expected = chances @ value[row, group].double()
                assert torch.allclose(weights[row, head, at].double(), chances, atol=1e-6)
                assert torch.allclose(by_rule[row, head, at].double(), expected, atol=1e-5)
                assert torch.allclose(fused[row, head, at].double(), expected, atol=1e-5)
    assert by_rule.isfinite().all()
    assert fused.isfinite().all()


@given(case=cases(), groups=st.sampled_from([1, 4]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_gradients_of_sdpa_equal_those_of_eager(case: Case, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, case.queries), (groups, case.keys), (groups, case.keys))
    tensors = [torch.randn(case.batch, h, n, 4, generator=generator, requires_grad=True) for h, n in shapes]
    visible = case.brute_force().any(-1)[..., None]  # rows that see nothing carry no gradient here
    found = []
    for attend in (eager_attention, sdpa_attention):
        output, _ = attend(*tensors, case.mask(), scale=0.5)
        found.append(torch.autograd.grad((output * visible).square().sum(), tensors))
    for eager, fused in zip(*found, strict=True):
        assert torch.allclose(eager, fused, atol=1e-4)
        assert fused.isfinite().all()


@given(case=cases(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_explicit_mask_replaces_the_rule(case: Case, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(case.batch, 1), (1, 1), (case.batch, 4), (1, 4)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    seen = torch.rand(*shape, case.queries, case.keys, generator=generator) < 0.6
    seen[..., 0] = True
    numbers = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
    tensors = torch.randn(3, case.batch, 4, max(case.queries, case.keys), 4, generator=generator)
    query, key, value = tensors[0][:, :, : case.queries], tensors[1][:, :, : case.keys], tensors[2][:, :, : case.keys]
    masks = [
        AttentionMask(case.queries, case.keys, CPU, start=case.start, explicit=given_) for given_ in (seen, numbers)
    ]
    results = [
        attend(query, key, value, mask, scale=0.5)[0] for attend in (eager_attention, sdpa_attention) for mask in masks
    ]
    scores = (query @ key.transpose(2, 3) * 0.5).masked_fill(~seen, -math.inf)
    for result in results:
        assert torch.allclose(result, scores.softmax(-1) @ value, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backends_agree_in_low_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 8, 20, 16, generator=generator).to(dtype)
    key, value = torch.randn(2, 2, 2, 20, 16, generator=generator).to(dtype)
    padding = torch.arange(20) >= torch.tensor([[0], [5]])
    for mask in (AttentionMask(20, 20, CPU), AttentionMask(20, 20, CPU, padding=padding)):
        eager, weights = eager_attention(query, key, value, mask, scale=0.25)
        fused, _ = sdpa_attention(query, key, value, mask, scale=0.25)
        truth, _ = eager_attention(query.float(), key.float(), value.float(), mask, scale=0.25)
        assert eager.dtype == fused.dtype == weights.dtype == dtype
        real = slice(None) if mask.padding is None else padding[:, None, :, None].expand_as(truth)
        limit = 4 * torch.finfo(dtype).eps * float(truth.abs().max())
        assert float((eager[real].float() - truth[real]).abs().max()) <= limit
        assert float((fused[real].float() - truth[real]).abs().max()) <= limit


# -- from what the caller gave -------------------------------------------------------------------------


def described(attention_mask: torch.Tensor | None, **changes: Any) -> AttentionMask:
    place = {"batch": 2, "queries": 3, "keys": 5, "start": 2, "positions": None, "device": CPU} | changes
    return make_mask(attention_mask, **place)


def test_a_mask_of_ones_is_no_mask() -> None:
    # the fast paths hang on this
    for ones in (torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.long)):
        assert described(ones).is_plain
    assert described(torch.ones(2, 3), keys=3, start=0).is_square_causal
    assert described(torch.ones(2, 5), queries=1, start=4).sees_all
    assert not described(torch.ones(2, 5), queries=1, start=3).sees_all
    assert not described(torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])).is_plain


def test_a_mask_of_ones_over_a_longer_cache_is_no_mask_either() -> None:
    mask = described(torch.ones(2, 5), keys=9)
    assert mask.is_plain
    assert not mask.sees_all
    assert not mask.allowed()[..., 5:].any()
    assert not described(torch.ones(2, 5), keys=9, queries=1, start=4).allowed()[..., 5:].any()


def test_packed_documents() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [3, 4, 5, 6, 7, 8], [0, 1, 5, 6, 2, 3]])
    assert packed_documents(positions).tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6, [0, 0, 1, 1, 2, 2]]
    assert packed_documents(positions[1:2]) is None


def test_backends_by_name() -> None:
    assert attention_names() == ("eager", "sdpa", "flash_attention_2", "flex_attention")
    assert get_attention("eager") is eager_attention
    assert get_attention(None) is get_attention("sdpa") is sdpa_attention
    assert get_attention("flash_attention_2") is flash_attention
    assert get_attention("flex_attention") is flex_attention_backend


ELSEWHERE = {
    "flash_attention_9": r"version 2 is here.*eager, sdpa, flash_attention_2, flex_attention",
    "flash_attention_3": "version 2 is here",
    "kernels-community/flash-attn": "not downloaded from the hub",
    "paged|sdpa": "serving many requests",
    "sdpa_paged": "serving many requests",
    "paged_attention": "serving many requests",
    "periscope": "there is no such backend",
    "": "there is no such backend",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_are_not_here_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=rf"is {name!r}: .*{ELSEWHERE[name]}".replace("|", r"\|")):
        check_attention(name)
    with pytest.raises(UnsupportedOptionError, match="is 3: there is no such backend"):
        check_attention(3)


# -- finished masks in other types and with heads of their own -----------------------------------------

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("given_in", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("used_in", FLOATS, ids=str)
def test_numbers_of_a_finished_mask_stay_finite_in_every_type(given_in: torch.dtype, used_in: torch.dtype) -> None:
    lowest = torch.finfo(given_in).min
    numbers = torch.tensor([[-math.inf, lowest, 0.0, -1.5], [-math.inf] * 4], dtype=given_in)[None, None]
    mask = AttentionMask(2, 4, CPU, explicit=numbers)
    added = mask.additive(used_in)
    assert added.dtype == used_in
    assert added.isfinite().all()
    assert added[0, 0, 0, 2:].tolist() == [0.0, -1.5]
    assert (added[..., :2] <= -60_000).all()
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).to(used_in)
    for attend in (eager_attention, sdpa_attention):
        by_numbers, _ = attend(query[:, :, :2], key, value, mask, scale=0.3)
        assert by_numbers.dtype == used_in
        assert by_numbers.isfinite().all(), "a row that sees nothing"
        if used_in != torch.float16:  # the lowest float16 leaves scores a say
            assert torch.allclose(by_numbers[:, :, 1], value.float().mean(2).to(used_in), atol=2e-2)
        shifted = AttentionMask(2, 4, CPU, explicit=numbers.clamp(min=-60_000).to(used_in))
        assert torch.equal(by_numbers[:, :, 0], attend(query[:, :, :2], key, value, shifted, scale=0.3)[0][:, :, 0])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["numbers", "booleans"])
def test_one_query_with_a_mask_for_every_head(kind: str, groups: int) -> None:
    # the heads of a group may not be folded into one: each has a mask of its own
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, 1, 8, generator=generator)
    key, value = torch.randn(2, 2, groups, 5, 8, generator=generator)
    explicit = torch.randn(1, 4, 1, 5, generator=generator) * 3
    mask = AttentionMask(1, 5, CPU, start=4, explicit=explicit if kind == "numbers" else explicit > -1)
    added = explicit if kind == "numbers" else torch.zeros(explicit.shape).masked_fill(explicit <= -1, -math.inf)
    keys, values = (tensor.repeat_interleave(4 // groups, dim=1) for tensor in (key, value))
    expected = (query @ keys.transpose(2, 3) * 0.5 + added).softmax(-1) @ values
    for attend in (eager_attention, sdpa_attention):
        assert torch.allclose(attend(query, key, value, mask, scale=0.5)[0], expected, atol=1e-5)


def test_padding_need_not_be_looked_at() -> None:
    ones, padded = torch.ones(2, 5), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert described(ones, has_padding=True).padding is not None
    assert described(padded, has_padding=False).is_plain
    # with places given, a mask that ends before the keys hides those behind it
    at = torch.tensor([2, 6, 8])
    for known in (None, True, False):
        assert not described(ones, keys=9, start=0, positions=at, has_padding=known).allowed()[..., 5:].any()
    assert described(ones, start=0, positions=at, has_padding=False).padding is None
