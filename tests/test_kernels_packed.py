"""Packed weights whose parts do not fit, whose scales overflow, or that tiles would round too coarsely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.gguf.container import TYPES
from quarterdeck.kernels import int4, int8, native
from quarterdeck.quantization.formats import Int4Format, Int8Format, PackedFormat
from quarterdeck.quantization.loading import RoundingReceiver
from quarterdeck.quantization.modules import QuantizedLinear
from quarterdeck.weights.gguf_blocks import quantize


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_parts_that_do_not_fit_are_refused(symmetric: bool) -> None:
    packed = int4.pack(*int4.quantize(made(32, 128), symmetric=symmetric))
    wrong = [packed._replace(columns=1280), packed._replace(rows=320), packed._replace(data=packed.data.to(torch.int8))]
    wrong += [packed._replace(scale=packed.scale[:, :1]), packed._replace(scale=packed.scale.float())]
    wrong += [packed._replace(data=packed.data.to(memory_format=torch.channels_last))]
    wrong += [packed._replace(scale=packed.scale.to("meta"))]
    if packed.minimum is not None:
        wrong += [packed._replace(minimum=packed.minimum[:1])]
    for each in wrong:
        with pytest.raises(InputError, match=r"packed weight's (data|scale|minimum)"):
            int4.linear(made(3, each.columns), each)


def test_int8_parts_that_do_not_fit_are_refused() -> None:
    packed = int8.pack(*int8.quantize(made(32, 128)))
    wrong = [packed._replace(columns=1280), packed._replace(row_sum=packed.row_sum[:3])]
    wrong += [packed._replace(scale=packed.scale.double()), packed._replace(row_sum=packed.row_sum.to("meta"))]
    wrong += [packed._replace(data=packed.data.to(memory_format=torch.channels_last))]
    for each in wrong:
        with pytest.raises(InputError, match=r"packed weight's (data|scale|row_sum)"):
            int8.linear(made(3, each.columns), each)


@pytest.mark.parametrize("form", [Int8Format(), Int4Format(symmetric=True)])
def test_a_memory_format_is_not_for_packed_tensors(form: PackedFormat) -> None:
    module = QuantizedLinear(form, 32, 128, None)
    module.set_weight(made(32, 128), torch.device("cpu"))
    expected = module(made(3, 128))
    assert torch.equal(module.to(memory_format=torch.channels_last)(made(3, 128)), expected)


def with_outliers(*columns: int) -> tuple[Tensor, Tensor]:
    """Activations ``[32, 1024]`` and a weight with ``columns`` 30 times as large, whose inputs are as much smaller."""
    x, weight = made(32, 1024, seed=1), made(160, 1024)
    weight[:, columns] *= 30
    x[:, columns] /= 30
    return x, weight


def lost(result: Tensor, exact: Tensor) -> float:
    return float((result - exact).norm() / exact.norm())


@pytest.mark.parametrize("columns", [range(100, 132), range(0, 1024, 128), [5]])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("level", native.LEVELS)
def test_columns_of_outliers_cost_no_more_than_four_bits(level: str, symmetric: bool, columns: list[int]) -> None:
    if level not in native.levels():
        pytest.skip(native.describe())
    x, weight = with_outliers(*columns)
    exact, packed = x @ weight.T, int4.pack(*int4.quantize(weight, symmetric=symmetric))
    error = lost(int4.linear_reference(x, packed), exact)
    assert lost(int4.linear(x, packed, level=level), exact) < 1.05 * error


@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_with_and_without_outliers_stand_side_by_side(symmetric: bool) -> None:
    """Blocks of 16 rows are multiplied in one of two ways; which, must not depend on how threads share them."""
    if not native.levels():
        pytest.skip(native.describe())
    x, weight = with_outliers(*range(100, 132))
    weight[32:64, 100:132] /= 30
    weight[144:, 100:132] /= 30
    packed = int4.pack(*int4.quantize(weight, symmetric=symmetric))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(int4.linear(x, packed))
    finally:
        torch.set_num_threads(before)
    assert lost(results[0], int4.linear_reference(x, packed)) < 0.01
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_that_float16_cannot_hold_are_refused(symmetric: bool) -> None:
    weight = made(4, 128)
    weight[1, 3] = -6e5
    with pytest.raises(InputError, match=r"largest weight is 6e\+05; float16 holds up to 65504 .*use int8"):
        int4.quantize(weight, symmetric=symmetric)
    for wrong in (torch.inf, torch.nan):
        weight[1, 3] = wrong
        with pytest.raises(InputError, match="infinities or NaNs"):
            int4.quantize(weight, symmetric=symmetric)
    values, scale, minimum = int4.quantize(made(4, 128), symmetric=symmetric)
    scale[2, 1] = torch.inf
    with pytest.raises(InputError, match="4-bit scales hold infinities or NaNs"):
        int4.pack(values, scale, minimum)


def test_the_loader_names_the_weight() -> None:
    module = QuantizedLinear(Int4Format(symmetric=True), 4, 128, None)
    with pytest.raises(InputError, match=r"^a\.b\.weight: 4-bit scales"):
        RoundingReceiver({"a.b": module}).receive("a.b.weight", made(4, 128) * 1e6, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_scales_that_float16_cannot_hold_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="float16 holds up to 65504: choose bf16 or f32"):
        quantize(made(2, 64) * 1e7, TYPES[kind])
