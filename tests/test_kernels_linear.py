"""Products with packed weights: every instruction set against the reference, and the reference against PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.kernels import dense, int4, int8, native
from quarterdeck.kernels import rows as kernels_rows
from quarterdeck.kernels.rows import pack_blocks, quantize_rows, unpack_blocks

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((1, 1), (16, 64), (37, 100), (50, 257), (96, 512))  # rows and columns of weights
ROWS = (1, 2, 7, 16, 33, 128)
TILE_ROWS = 16  # from here on, AMX multiplies 4-bit weights as rounded to 8 bits
UNIT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}  # two roundings of the result's type


@pytest.fixture(params=native.LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if request.param not in native.levels():
        pytest.skip(f"{request.param}: {native.describe()}")
    return str(request.param)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=generator(seed)).to(dtype)


def weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator())


def packed_int8(rows: int, columns: int) -> int8.Int8Weight:
    return int8.pack(*int8.quantize(weight(rows, columns)))


def packed_int4(rows: int, columns: int, symmetric: bool) -> int4.Int4Weight:
    return int4.pack(*int4.quantize(weight(rows, columns), symmetric=symmetric))


def distance(a: Tensor, b: Tensor) -> float:
    """Of two results, relative to the size of the second."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def cases() -> Iterator[tuple[int, int, int]]:
    for rows, columns in SIZES:
        for count in ROWS if (rows, columns) == (50, 257) else (1, 7, 33):
            yield count, rows, columns


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**31))
def test_packing_is_undone_exactly(rows: int, columns: int, seed: int) -> None:
    values = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator(seed))
    assert torch.equal(unpack_blocks(pack_blocks(values), rows, columns), values)
    scale = torch.rand(rows, generator=generator(seed))
    unpacked = int8.unpack(int8.pack(values, scale))
    assert torch.equal(unpacked[0], values)
    assert torch.equal(unpacked[1], scale)
    for group, symmetric in ((32, True), (64, False)):
        nibbles = (values & 15).to(torch.uint8)
        scales = torch.rand(rows, -(-columns // group), generator=generator(seed)).half()
        minimum = None if symmetric else -scales
        first, second, third = int4.unpack(int4.pack(nibbles, scales, minimum))
        assert torch.equal(first, nibbles)
        assert torch.equal(second, scales)
        assert third is None if minimum is None else torch.equal(third, minimum)


def test_layout_is_the_documented_one() -> None:
    packed = packed_int8(40, 130)
    values, _ = int8.unpack(packed)
    assert packed.data.shape == (3, 48, 16, 4)
    assert packed.data[1, 5, 3, 2] == values[16 + 3, 5 * 4 + 2]
    assert packed.row_sum.tolist() == values.int().sum(dim=1).tolist()
    four = packed_int4(40, 130, symmetric=True)
    nibbles, scales, _ = int4.unpack(four)
    assert four.data.shape == (3, 24, 16, 4)
    assert four.data[1, 5, 3, 2] == nibbles[19, 42] + 16 * nibbles[19, 46]
    assert four.scale[1, 4, 3] == scales[19, 4]


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_cost_four_and_a_half(symmetric: bool) -> None:
    packed = packed_int4(64, 256, symmetric)
    numbers = [part for part in packed[:3] if isinstance(part, Tensor)]
    assert sum(part.numel() * part.element_size() for part in numbers) * 8 == 64 * 256 * 4.5


def test_rounding_is_to_nearest() -> None:
    w = weight(30, 200)
    values, scale = int8.quantize(w)
    assert ((values * scale[:, None] - w).abs() <= scale[:, None] * 0.5001).all()
    for symmetric in (True, False):
        group = 32 if symmetric else 64
        packed = packed_int4(30, 200, symmetric)
        step = int4.unpack(packed)[1].float().abs().repeat_interleave(group, dim=1)[:, :200]
        # the largest value of the other sign may be up to one step beyond 7; float16 rounds the ends
        assert ((int4.dequantize(packed) - w).abs() <= step * (1.01 if symmetric else 0.51) + 2e-3).all()


def test_reference_is_near_the_product_that_it_approximates() -> None:
    x, w = activations(64, 512), weight(96, 512)
    exact = torch.nn.functional.linear(x, w)
    assert distance(int8.linear_reference(x, packed_int8(96, 512)), exact) < 0.02
    for symmetric in (True, False):
        assert distance(int4.linear_reference(x, packed_int4(96, 512, symmetric)), exact) < 0.12


@pytest.mark.parametrize("part", [1, 16 * 256 * 2, 2**22])
@pytest.mark.parametrize("dtype", TYPES)
def test_without_the_library_parts_agree_with_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, part: int
) -> None:
    monkeypatch.setattr(kernels_rows, "PART", part)
    for rows, columns in (*SIZES, (20, 2500)):
        x, bias = activations(3, columns, dtype), torch.randn(rows, generator=generator(2))
        eight = packed_int8(rows, columns)
        assert torch.equal(int8.linear_in_parts(x, eight, bias), int8.linear_reference(x, eight, bias))
        for symmetric in (True, False):
            four = packed_int4(rows, columns, symmetric)
            expected = int4.linear_reference(x, four, bias)
            assert distance(int4.linear_in_parts(x, four, bias), expected) < 2 * UNIT[dtype]


def test_parts_hold_sums_that_float32_cannot() -> None:
    values = torch.full((17, 4099), 127, dtype=torch.int8)
    packed, x = int8.pack(values, torch.ones(17)), torch.ones(1, 4099)
    assert torch.equal(int8.linear_in_parts(x, packed), int8.linear_reference(x, packed))


def test_without_the_library_no_more_than_a_part_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "levels", lambda: ())
    monkeypatch.setattr(kernels_rows, "PART", 16 * 64)
    seen: list[int] = []

    def unpack(data: Tensor, rows: int, columns: int) -> Tensor:
        seen.append(rows)
        return unpack_blocks(data, rows, columns)

    x = activations(2, 64)
    for module, product, packed in (
        (int8, int8.linear, packed_int8(40, 64)),
        (int4, int4.linear, packed_int4(40, 64, symmetric=False)),
    ):
        monkeypatch.setattr(module, "unpack_blocks", unpack)
        product(x, packed)  # type: ignore[operator]
    assert seen == [16, 16, 8] * 2


@pytest.mark.parametrize("dtype", TYPES)
def test_int8_is_exactly_the_reference(level: str, dtype: torch.dtype) -> None:
    for count, rows, columns in cases():
        packed, x, bias = packed_int8(rows, columns), activations(count, columns, dtype), torch.randn(rows)
        assert torch.equal(int8.linear(x, packed, level=level), int8.linear_reference(x, packed))
        assert torch.equal(int8.linear(x, packed, bias, level=level), int8.linear_reference(x, packed, bias))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_int4_agrees_with_the_reference(level: str, dtype: torch.dtype, symmetric: bool) -> None:
    for count, rows, columns in cases():
        packed, x, bias = packed_int4(rows, columns, symmetric), activations(count, columns, dtype), torch.randn(rows)
        expected = int4.linear_reference(x, packed, bias)
        tiles = level == "amx" and count >= TILE_ROWS
        assert distance(int4.linear(x, packed, bias, level=level), expected) < (0.02 if tiles else UNIT[dtype])


def test_rounding_for_tiles_is_small_beside_rounding_to_four_bits() -> None:
    if "amx" not in native.levels():
        pytest.skip(native.describe())
    for spread in (0.0, 0.5):  # ordinary rows, and rows with outliers
        w = weight(64, 1024) * (spread * torch.randn(64, 1024, generator=generator(2))).exp()
        x = activations(32, 1024)
        exact = torch.nn.functional.linear(x, w)
        for symmetric in (True, False):
            packed = int4.pack(*int4.quantize(w, symmetric=symmetric))
            error = distance(int4.linear_reference(x, packed), exact)
            assert distance(int4.linear(x, packed, level="amx"), exact) < 1.05 * error


@pytest.mark.parametrize("dtype", TYPES)
def test_dense_agrees_with_the_reference(level: str, dtype: torch.dtype) -> None:
    for rows, columns in SIZES:
        for count in (1, 2, 3, 7, 9):
            w, x, bias = (
                weight(rows, columns).to(dtype),
                activations(count, columns, dtype),
                torch.randn(rows).to(dtype),
            )
            expected = dense.linear_reference(x, w, bias)
            assert distance(dense.linear(x, w, bias, level=level), expected) < UNIT[dtype]


def test_dense_is_pytorch_where_gradients_flow_or_rows_are_many() -> None:
    w = torch.nn.Parameter(weight(512, 600))
    dense.linear(activations(1, 600), w).sum().backward()
    assert w.grad is not None
    bias = torch.nn.Parameter(torch.zeros(512))
    dense.linear(activations(1, 600), w.detach(), bias).sum().backward()
    assert torch.equal(bias.grad, torch.ones(512))
    x = activations(40, 600)
    assert torch.equal(dense.linear(x, w), torch.nn.functional.linear(x, w))
    with torch.no_grad():
        assert distance(dense.linear(x[:1], w), torch.nn.functional.linear(x[:1], w)) < 1e-5


@pytest.mark.parametrize("count", [1, 5, 40])
def test_rows_of_zeros_infinities_and_tiny_numbers(level: str, count: int) -> None:
    w8, w4 = packed_int8(37, 100), packed_int4(37, 100, symmetric=False)
    for odd in (0.0, 1e-38, float("inf"), -float("inf"), float("nan")):
        x = activations(count, 100)
        x[0] = odd
        if odd != odd or abs(odd) == float("inf"):
            x[0, 1:] = 1.0  # one such number is enough
        for product, reference, packed in (
            (int8.linear, int8.linear_reference, w8),
            (int4.linear, int4.linear_reference, w4),
        ):
            result = product(x, packed, level=level)
            assert torch.equal(result[0].isnan(), reference(x, packed)[0].isnan())
            assert bool(result[0].isnan().all()) == (not torch.tensor(odd).isfinite())
            assert result[1:].isfinite().all()
            assert odd not in (0.0, 1e-38) or not result[0].any()


def test_largest_numbers_do_not_overflow(level: str) -> None:
    columns = 20_000
    values = torch.full((16, columns), 127, dtype=torch.int8)
    packed = int8.pack(values, torch.ones(16))
    for sign in (1.0, -1.0):
        x = torch.full((17, columns), sign)
        for rows in (1, 17):
            assert torch.equal(int8.linear(x[:rows], packed, level=level), int8.linear_reference(x[:rows], packed))
    nibbles = int4.pack(torch.full((16, 128), 15, dtype=torch.uint8), torch.ones(16, 4).half(), None)
    assert distance(int4.linear(torch.ones(1, 128), nibbles, level=level), torch.full((1, 16), 896.0)) < 1e-6


def test_leading_dimensions_stay_and_strided_activations_are_read_right(level: str) -> None:
    packed = packed_int8(20, 64)
    x = activations(6, 128).view(2, 3, 128)[..., ::2]
    assert torch.equal(int8.linear(x, packed, level=level), int8.linear_reference(x, packed))
    assert int8.linear(x, packed, level=level).shape == (2, 3, 20)
    assert int8.linear(x[:0], packed, level=level).shape == (0, 3, 20)


def test_more_rows_than_are_taken_at_a_time(level: str) -> None:
    packed, x = packed_int8(33, 70), activations(1050, 70)
    assert torch.equal(int8.linear(x, packed, level=level), int8.linear_reference(x, packed))


def test_any_number_of_threads_gives_the_same(level: str) -> None:
    packed, x = packed_int8(700, 200), activations(40, 200)
    four = packed_int4(700, 200, symmetric=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((int8.linear(x, packed, level=level), int4.linear(x, four, level=level)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])


def test_two_python_threads_at_once(level: str) -> None:
    packed = packed_int8(300, 300)
    inputs = [activations(count, 300, seed=count) for count in (1, 40)]
    expected = [int8.linear_reference(x, packed) for x in inputs]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(50):
            if not torch.equal(int8.linear(inputs[which], packed, level=level), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", TYPES)
def test_embedding_is_rows_of_the_weight(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 36, 17], [5, 5, 1]])
    for module, packed in (
        (int8, packed_int8(37, 100)),
        (int4, packed_int4(37, 100, symmetric=True)),
        (int4, packed_int4(37, 100, symmetric=False)),
    ):
        assert torch.equal(module.embedding(ids, packed, dtype), module.dequantize(packed)[ids].to(dtype))


def test_what_does_not_fit_is_refused() -> None:
    packed = packed_int8(16, 64)
    with pytest.raises(InputError, match="64 columns"):
        int8.linear(torch.randn(2, 65), packed)
    with pytest.raises(InputError, match=r"must be \[16\]"):
        int8.linear(torch.randn(2, 64), packed, torch.randn(4))
    with pytest.raises(InputError, match="float64"):
        int8.linear(torch.randn(2, 64).double(), packed)
    with pytest.raises(InputError, match="what can: reference"):
        int8.linear(torch.randn(2, 64), packed, level="sse9")
    with pytest.raises(InputError, match="-128 to"):
        int8.pack(torch.full((2, 2), -128, dtype=torch.int8), torch.ones(2))
    with pytest.raises(InputError, match="16"):
        int4.pack(torch.full((2, 2), 16, dtype=torch.uint8), torch.ones(2, 1).half(), None)
    with pytest.raises(InputError, match=r"need float16 \[2, 3\]"):
        int4.pack(torch.zeros(2, 70, dtype=torch.uint8), torch.ones(2, 2).half(), None)
    with pytest.raises(InputError, match="infinities or NaNs"):
        int4.quantize(torch.full((2, 2), torch.inf), symmetric=True)
    with pytest.raises(InputError, match="not empty"):
        int8.quantize(torch.zeros(0, 4))
    with pytest.raises(InputError, match="int64 or int32"):
        int8.embedding(torch.tensor([1.0]), packed)
    for wrong in (-1, 17):
        with pytest.raises(InputError, match="rows 0 to 15"):
            int4.embedding(torch.tensor([3, wrong]), packed_int4(16, 64, symmetric=True))
    with pytest.raises(InputError, match="same type"):
        dense.linear(torch.randn(1, 4).half(), torch.randn(4, 4))


def test_rows_are_quantized_symmetrically() -> None:
    values, scale = quantize_rows(torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]]))
    assert values.tolist() == [[127, -64, 32], [0, 0, 0]]
    assert scale.tolist() == pytest.approx([1 / 127, 0.0])
