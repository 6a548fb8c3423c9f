"""Blocks of GGUF files against the reference of the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quarterdeck.errors import InputError
from quarterdeck.gguf.container import TYPES
from quarterdeck.weights.gguf_blocks import WRITABLE, dequantize, quantize, split_q4_0

gguf = pytest.importorskip("gguf")

BLOCKS = [name for name, kind in TYPES.items() if kind.block > 1]
# where half floats stand in a block
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def random_rows(name: str, rows: int = 7, blocks: int = 3) -> torch.Tensor:
    """Any bits at all, but scales that are finite."""
    kind = TYPES[name]
    generator = torch.Generator().manual_seed(5)
    raw = torch.randint(0, 256, (rows * blocks, kind.nbytes), dtype=torch.uint8, generator=generator)
    for place in HALVES[name]:
        raw[:, place : place + 2] = torch.randn(rows * blocks, 1, generator=generator).half().view(torch.uint8)
    return raw.view(rows, -1)


def theirs(name: str) -> object:
    return gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_read_as_the_reference_reads_them(name: str) -> None:
    raw = random_rows(name)
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
    raw = random_rows("Q4_0")
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
