"""Packed attention against a dense mask in float64, and its fallback against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.kernels import packed_attention as module
from quarterdeck.kernels.native import LEVELS, levels
from quarterdeck.kernels.packed_attention import PackedLayout, packed_attention, packed_attention_reference

NATIVE_LEVELS = [
    pytest.param(name, marks=pytest.mark.skipif(name not in levels(), reason=f"no {name} here"))
    for name in ("avx512", "amx")
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2}


def layout_of(*documents: tuple[int, int | None]) -> PackedLayout:
    """Documents as (length, index of the prefix or None), one after the other."""
    rows: list[tuple[int, int, int, int]] = []
    begin = 0
    for length, prefix in documents:
        seen = (0, 0) if prefix is None else rows[prefix][:2]
        rows.append((begin, begin + length, *seen))
        begin += length
    return PackedLayout(torch.tensor(rows, dtype=torch.int64).reshape(-1, 4))


LAYOUTS = {
    "one token": layout_of((1, None)),
    "odd lengths": layout_of((1, None), (37, None), (2, None), (64, None), (129, None), (300, None), (31, None)),
    "on prefixes": layout_of(
        (45, None), (1, 0), (70, 0), (33, None), (96, None), (17, 4), (5, 0), (64, 4), (131, 4), (16, None)
    ),
    "all on one": layout_of((290, None), *[(40 + i, 0) for i in range(9)]),
}


def dense(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float) -> Tensor:
    """What is meant: softmax over all tokens of the stream under a mask."""
    seen = torch.zeros(len(query), len(query), dtype=torch.bool)
    for begin, end, prefix_begin, prefix_end in layout.documents.tolist():
        seen[begin:end, prefix_begin:prefix_end] = True
        seen[begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
    key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def inputs(layout: PackedLayout, heads: int, key_heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the gradient of the result."""
    generator = torch.Generator().manual_seed(heads * width)
    sizes = (heads, key_heads, key_heads, heads)
    return [torch.randn(layout.tokens, size, width, generator=generator).to(dtype) for size in sizes]


def run(function: object, tensors: list[Tensor], layout: PackedLayout, scaling: float) -> list[Tensor]:
    """The result and the three gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:3]]
    out = function(*leaves, layout, scaling)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]


def assert_near(results: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, got, want in zip(("result", "query", "key", "value"), results, expected, strict=True):
        wrong = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert wrong < tolerance, f"{name}: {wrong:.2e} of the largest"


def use_level(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setattr(module, "native_level", lambda query: LEVELS.index(level))


@pytest.mark.parametrize("level", NATIVE_LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(6, 6, 32), (4, 2, 64), (3, 1, 128)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_native_is_near_the_dense_mask(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_level(monkeypatch, level)
    layout, scaling = LAYOUTS[name], 1.3 * shape[2] ** -0.5
    tensors = inputs(layout, *shape, dtype)
    expected = run(dense, [tensor.double() for tensor in tensors], layout, scaling)
    results = run(packed_attention, tensors, layout, scaling)
    assert all(result.dtype == dtype and result.is_contiguous() for result in results)
    assert_near(results, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("level", NATIVE_LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_strides(dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_level(monkeypatch, level)
    layout = LAYOUTS["on prefixes"]
    whole = torch.randn(layout.tokens, 8 * 32 + 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    query = whole[:, 3:131].unflatten(1, (4, 32))  # pieces of one product, at odd places
    key = whole[:, 131:195].unflatten(1, (2, 32))
    value = whole[:, 195:259].unflatten(1, (32, 2)).transpose(1, 2)  # channels do not follow each other
    grad = whole.flip(0)[:, :128].unflatten(1, (32, 4)).transpose(1, 2)
    tensors = [query, key, value, grad]
    expected = run(packed_attention, [tensor.contiguous() for tensor in tensors], layout, 0.2)
    for got, want in zip(run(packed_attention, tensors, layout, 0.2), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("level", NATIVE_LEVELS)
def test_large_scores_and_what_is_not_a_number(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_level(monkeypatch, level)
    layout = layout_of((100, None), (50, None))
    query, key, value, _ = inputs(layout, 2, 2, 32, torch.float32)
    query = query * 200  # differences of hundreds: one weight is all
    expected = dense(query.double(), key.double(), value.double(), layout, 1.0)
    assert (packed_attention(query, key, value, layout, 1.0).double() - expected).abs().max() < 1e-3
    key[120, 1, 5] = torch.nan
    result = packed_attention(query, key, value, layout, 1.0)
    assert result[120:, 1].isnan().all()
    assert not result[:120].isnan().any()
    assert not result[:, 0].isnan().any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_reference_is_the_dense_mask(name: str) -> None:
    layout = LAYOUTS[name]
    tensors = [tensor.double() for tensor in inputs(layout, 4, 2, 24, torch.float32)]
    expected = run(dense, tensors, layout, 0.3)
    assert_near(run(packed_attention_reference, tensors, layout, 0.3), expected, 1e-12)
    assert_near(run(packed_attention, tensors, layout, 0.3), expected, 1e-12)  # neither float64 nor 24 is native


def test_gradients_of_the_reference() -> None:
    layout = layout_of((3, None), (2, 0), (1, 0))
    generator = torch.Generator().manual_seed(2)
    leaves = [
        torch.randn(6, heads, 4, dtype=torch.float64, generator=generator, requires_grad=True) for heads in (2, 1, 1)
    ]
    assert torch.autograd.gradcheck(lambda *qkv: packed_attention_reference(*qkv, layout, 0.5), leaves)


@pytest.mark.parametrize("function", [packed_attention, packed_attention_reference])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_autocast_changes_nothing(function: object, dtype: torch.dtype) -> None:
    layout = LAYOUTS["on prefixes"]
    tensors = inputs(layout, 2, 2, 32, dtype)
    expected = run(function, tensors, layout, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = run(function, tensors, layout, 0.2)
    assert results[0].dtype == dtype
    assert_near(results, [tensor.double() for tensor in expected], 1e-6)


def test_what_does_not_fit_is_said() -> None:
    layout = layout_of((3, None), (2, 0))
    query, key, value, _ = inputs(layout, 4, 2, 32, torch.float32)
    with pytest.raises(InputError, match="5 tokens, the query 4"):
        packed_attention(query[:4], key[:4], value[:4], layout, 1.0)
    with pytest.raises(InputError, match="one type"):
        packed_attention(query, key.bfloat16(), value, layout, 1.0)
    for elsewhere in range(3):
        tensors = [one.to("meta") if n == elsewhere else one for n, one in enumerate((query, key, value))]
        for function in (packed_attention, packed_attention_reference):
            with pytest.raises(InputError, match=r"on one device, not .*meta"):
                function(*tensors, layout, 1.0)
    with pytest.raises(InputError, match="divide"):
        packed_attention(query[:, :3], key, value, layout, 1.0)
    with pytest.raises(InputError, match="listed before"):
        packed_attention(query, key, value, PackedLayout(torch.tensor([[0, 3, 3, 5], [3, 5, 0, 0]])), 1.0)
    with pytest.raises(InputError, match="follow each other"):
        packed_attention(query, key, value, PackedLayout(torch.tensor([[0, 3, 0, 0], [4, 5, 0, 0]])), 1.0)
