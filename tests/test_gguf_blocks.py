"""Blocks of GGUF files against the reference of the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gguf_support import random_raw
from quarterdeck.errors import InputError
from quarterdeck.gguf.container import TYPES
from quarterdeck.kernels import int4, int8_groups
from quarterdeck.weights.gguf_blocks import WRITABLE, dequantize, quantize, split_q4_0, split_q4_1, split_q8_0

gguf = pytest.importorskip("gguf")

BLOCKS = [name for name, kind in TYPES.items() if kind.block > 1]


def theirs(name: str) -> object:
    return gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_read_as_the_reference_reads_them(name: str) -> None:
    raw = random_raw(name, 7, 768)
    expected = gguf.quants.dequantize(raw.numpy(), theirs(name))
    assert np.array_equal(dequantize(raw, TYPES[name]).numpy(), expected)


@pytest.mark.parametrize("name", WRITABLE)
def test_numbers_are_rounded_as_the_reference_rounds_them(name: str) -> None:
    rows = torch.randn(33, 256, generator=torch.Generator().manual_seed(2))
    rows[3] = 0.0
    rows[4, :32] = 1.0
    rows[5] *= 1e-6
    rows[6] = torch.arange(-128.0, 128.0) / 2  # halves between two values
    expected = gguf.quants.quantize(rows.numpy(), theirs(name)).view(np.uint8)
    assert np.array_equal(quantize(rows, TYPES[name]).numpy(), expected)


def test_types_and_their_sizes_are_the_packages() -> None:
    for name, kind in TYPES.items():
        assert (kind.block, kind.nbytes) == gguf.GGML_QUANT_SIZES[theirs(name)]
        assert kind.number == int(theirs(name))


def test_q4_0_is_split_without_loss() -> None:
    raw = random_raw("Q4_0", 7, 96)
    values, scale = split_q4_0(raw)
    again = (values.float() - 8) * scale.float().repeat_interleave(32, dim=1)
    assert values.dtype == torch.uint8
    assert int(values.max()) == 15
    assert torch.equal(again, dequantize(raw, TYPES["Q4_0"]))


@pytest.mark.parametrize("columns", [32, 96, 512])
def test_packed_blocks_are_the_references_to_the_last_bit(columns: int) -> None:
    for name, packed, dequantized in (
        ("Q4_0", lambda raw: int4.pack(*split_q4_0(raw), None), int4.dequantize),
        ("Q4_1", lambda raw: int4.pack(*split_q4_1(raw), group=32), int4.dequantize),
        ("Q8_0", lambda raw: int8_groups.pack(*split_q8_0(raw)), int8_groups.dequantize),
    ):
        raw = random_raw(name, 37, columns)
        expected = gguf.quants.dequantize(raw.numpy(), theirs(name))
        weight = packed(raw)
        assert np.array_equal(dequantized(weight).numpy(), expected), name
        x = torch.randn(20, columns, generator=torch.Generator().manual_seed(1))
        found = (int8_groups if name == "Q8_0" else int4).linear(x, weight)
        wanted = x.double() @ torch.from_numpy(expected).double().T
        assert (found - wanted).norm() < 0.03 * wanted.norm(), name


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match="Q6_K is read, but not written; there are F32, F16"):
        quantize(torch.zeros(1, 256), TYPES["Q6_K"])
    with pytest.raises(InputError, match="infinities or NaNs"):
        quantize(torch.full((1, 32), torch.inf), TYPES["Q8_0"])
