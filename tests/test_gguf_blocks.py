"""Blocks of GGUF files against the reference of the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gguf_support import random_raw
from quarterdeck.errors import InputError
from quarterdeck.gguf.container import TYPES
from quarterdeck.weights.gguf_blocks import WRITABLE, dequantize, quantize, split_q4_0

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


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match="Q6_K is read, but not written; there are F32, F16"):
        quantize(torch.zeros(1, 256), TYPES["Q6_K"])
    with pytest.raises(InputError, match="infinities or NaNs"):
        quantize(torch.full((1, 32), torch.inf), TYPES["Q8_0"])
