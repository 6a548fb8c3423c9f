"""Weights in 8 bits and asymmetric ones in 4 bits with a scale per 32 columns, on every level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.kernels import int4, int8, int8_groups, native
from quarterdeck.kernels import rows as kernels_rows
from quarterdeck.kernels.int4 import Int4Weight
from quarterdeck.kernels.int8_groups import Int8GroupWeight

SIZES = ((1, 1), (16, 64), (37, 100), (50, 288), (96, 512))  # rows and columns of weights
ROWS = (1, 2, 7, 16, 33)
KINDS = ("eight", "four")
UNIT = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


@pytest.fixture(params=native.LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if request.param not in native.levels():
        pytest.skip(f"{request.param}: {native.describe()}")
    return str(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(rows: int, columns: int, least: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Any values at all, scales of both signs and minima."""
    generator = torch.Generator().manual_seed(rows * columns)
    values = torch.randint(least, most + 1, (rows, columns), generator=generator)
    groups = -(-columns // 32)
    return values, random(rows, groups, seed=1).half(), random(rows, groups, seed=2).half()


def eight(rows: int, columns: int) -> Int8GroupWeight:
    values, scale, _ = numbers(rows, columns, -128, 127)
    return int8_groups.pack(values.to(torch.int8), scale)


def four(rows: int, columns: int) -> Int4Weight:
    values, scale, minimum = numbers(rows, columns, 0, 15)
    return int4.pack(values.to(torch.uint8), scale, minimum, group=32)


def product(kind: str, x: Tensor, rows: int, columns: int, bias: Tensor | None, level: str) -> tuple[Tensor, Tensor]:
    """A product and its reference in float64, made of the numbers that were packed."""
    values, scale, minimum = numbers(rows, columns, *((-128, 127) if kind == "eight" else (0, 15)))
    weight = values.double() * scale.double().repeat_interleave(32, dim=1)[:, :columns]
    if kind == "four":
        weight += minimum.double().repeat_interleave(32, dim=1)[:, :columns]
        found = int4.linear(x, four(rows, columns), bias, level=level)
    else:
        found = int8_groups.linear(x, eight(rows, columns), bias, level=level)
    rounded, steps = kernels_rows.quantize_rows(x)
    expected = rounded.double() @ weight.T * steps.double()[:, None]
    return found, expected if bias is None else expected + bias.double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_packing_is_undone_exactly(rows: int, columns: int) -> None:
    values, scale, minimum = numbers(rows, columns, -128, 127)
    found = int8_groups.unpack(eight(rows, columns))
    assert torch.equal(found[0], values.to(torch.int8))
    assert torch.equal(found[1], scale)
    nibbles = numbers(rows, columns, 0, 15)[0].to(torch.uint8)
    packed = four(rows, columns)
    assert packed.group == 32
    for part, given in zip(int4.unpack(packed), (nibbles, scale, minimum), strict=True):
        assert part is not None
        assert torch.equal(part, given)


def test_eight_and_a_half_and_five_bits() -> None:
    for packed, bits in ((eight(64, 256), 8.5), (four(64, 256), 5.0)):
        parts = [part for part in packed if isinstance(part, Tensor)]
        assert sum(part.nbytes for part in parts) * 8 == 64 * 256 * bits


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_numbers(level: str, kind: str, dtype: torch.dtype) -> None:
    for rows, columns in SIZES:
        for count in ROWS if rows == 50 else (1, 33):
            x, bias = random(count, columns, seed=3).to(dtype), random(rows, seed=4)
            for added in (None, bias):
                found, expected = product(kind, x, rows, columns, added, level)
                # from 16 rows on, tiles may round 4-bit weights to 8 bits with a step per row
                assert distance(found, expected) < (0.03 if kind == "four" and count >= 16 else UNIT[dtype])


def test_8_bits_in_groups_keep_what_a_row_of_outliers_loses(level: str) -> None:
    x, weight = random(32, 1024, seed=5), random(64, 1024, seed=6)
    weight[:, 100:132] *= 100
    x[:, 100:132] /= 100
    exact = x @ weight.T
    grouped, rows = int8_groups.pack(*int8_groups.quantize(weight)), int8.pack(*int8.quantize(weight))
    error = distance(int8_groups.linear(x, grouped, level=level), exact)
    assert error < 1.01 * distance(int8_groups.linear_reference(x, grouped), exact)
    assert error < 0.3 * distance(int8.linear(x, rows, level=level), exact)


@pytest.mark.parametrize("part", [1, 16 * 256 * 2, 2**22])
def test_without_the_library_parts_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(kernels_rows, "PART", part)
    for rows, columns in SIZES:
        x, bias = random(3, columns), random(rows)
        packed, small = eight(rows, columns), four(rows, columns)
        expected = int8_groups.linear_reference(x, packed, bias)
        assert distance(int8_groups.linear_in_parts(x, packed, bias), expected) < 1e-6
        assert distance(int4.linear_in_parts(x, small, bias), int4.linear_reference(x, small, bias)) < 1e-6


@pytest.mark.parametrize("dtype", UNIT)
def test_embedding_is_rows_of_the_weight(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 36, 17], [5, 5, 1]])
    assert torch.equal(
        int8_groups.embedding(ids, eight(37, 100), dtype), int8_groups.dequantize(eight(37, 100))[ids].to(dtype)
    )
    assert torch.equal(int4.embedding(ids, four(37, 100), dtype), int4.dequantize(four(37, 100))[ids].to(dtype))


def test_rounding_is_to_nearest() -> None:
    weight = random(30, 200)
    values, scale = int8_groups.quantize(weight)
    step = scale.float().repeat_interleave(32, dim=1)[:, :200]
    # float16 rounds scales, and the largest number of a group may end beyond 127 steps
    assert ((values * step - weight).abs() <= 0.57 * step).all()
    found, scale, minimum = int4.quantize(weight, symmetric=False, group=32)
    assert scale.shape == (30, 7)
    step = scale.float().repeat_interleave(32, dim=1)[:, :200]
    again = int4.dequantize(int4.pack(found, scale, minimum, group=32))
    assert ((again - weight).abs() <= 0.51 * step + 2e-3).all()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_rows_of_infinities_are_nan_and_zeros_zero(level: str, count: int) -> None:
    x = random(count, 100)
    for odd in (0.0, float("inf"), float("nan")):
        x[0] = odd
        for result in (
            int8_groups.linear(x, eight(37, 100), level=level),
            int4.linear(x, four(37, 100), level=level),
        ):
            assert bool(result[0].isnan().all()) == (odd != 0.0)
            assert odd != 0.0 or not result[0].any()
            assert result[1:].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    packed = eight(32, 128)
    for wrong in (
        packed._replace(columns=1280), packed._replace(rows=320), packed._replace(data=packed.data.view(torch.uint8)),
        packed._replace(scale=packed.scale[:, :1]), packed._replace(scale=packed.scale.float()),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"packed weight's (data|scale)"):
            int8_groups.linear(random(3, wrong.columns), wrong)
    with pytest.raises(InputError, match="128 columns"):
        int8_groups.linear(random(2, 65), packed)
    with pytest.raises(InputError, match=r"need float16 \[2, 3\]"):
        int8_groups.pack(torch.zeros(2, 70, dtype=torch.int8), torch.ones(2, 2).half())
    with pytest.raises(InputError, match="float16 holds up to 65504"):
        int8_groups.quantize(torch.full((2, 2), 1e7))
    with pytest.raises(InputError, match="asymmetric 4-bit weights have groups of 64 or 32"):
        int4.quantize(random(2, 64), symmetric=False, group=16)
    with pytest.raises(InputError, match="group is 64; symmetric 4-bit weights have groups of 32"):
        int4.quantize(random(2, 64), symmetric=True, group=64)
