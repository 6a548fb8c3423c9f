"""Kernels in Triton against their references, in Triton's interpreter; `test_triton.py` runs this in a process for it.

Sizes are odd on purpose: rows and columns beyond whole blocks, several blocks, several parts of ``K``.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import make_ours, padding_mask, random_ids, relative_error
from quarterdeck import StaticCache
from quarterdeck.fusion import FusedDecoderLayer, fuse_model
from quarterdeck.kernels import fp8, int4, int8, int8_groups
from quarterdeck.kernels.triton import attention, elementwise, products
from quarterdeck.kernels.triton.products import Packed, any_product, product, unpacked

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton.py"

KINDS = ["int4", "int4 asymmetric", "int4 of 32", "int8", "int8 in groups", "fp8"]
# of scale: the type's last place, doubled where weights are rounded to it as well
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def some_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, work is divided."""
    for module in (products, attention):
        monkeypatch.setattr(module, "multiprocessors", lambda device: 4)


def packed(kind: str, rows: int, columns: int) -> tuple[Packed, Tensor]:
    """A random weight and what it is in float32."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    weight[0] = 0.0
    if kind == "int8":
        eight = int8.pack(*int8.quantize(weight))
        return Packed(eight.data, eight.scale, None, kind, rows, columns), int8.dequantize(eight)
    if kind == "fp8":
        float8 = fp8.pack(*fp8.quantize(weight))
        return Packed(float8.data, float8.scale, None, kind, rows, columns), fp8.dequantize(float8)
    if kind == "int8 in groups":
        grouped = int8_groups.pack(*int8_groups.quantize(weight))
        return Packed(grouped.data, grouped.scale, None, "int8", rows, columns), int8_groups.dequantize(grouped)
    group = 32 if kind == "int4 of 32" else None
    four = int4.pack(*int4.quantize(weight, symmetric=kind == "int4", group=group), group=group)
    return Packed(four.data, four.scale, four.minimum, "int4", rows, columns), int4.dequantize(four)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "dtype", "shape"),
    [
        (1, torch.float32, (17, 600)),
        (1, torch.bfloat16, (34, 201)),
        (2, torch.float16, (34, 201)),
        (9, torch.bfloat16, (17, 600)),
    ],
)
def test_products(kind: str, rows: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight, full = packed(kind, *shape)
    x, bias = torch.randn(rows, shape[1]).to(dtype), torch.randn(shape[0])
    truth = x.double() @ full.double().T
    added = bias if rows > 1 else None
    assert relative_error(product(x, weight, added), truth + (rows > 1) * bias) < LIMITS[dtype]


def test_parts_of_one_row_are_added_up() -> None:
    weight, full = packed("int8", 17, 1100)
    x, bias = torch.randn(1, 1100), torch.randn(17)
    assert products._parts(2, weight.words.shape[1], 64, 4) == 2
    assert relative_error(product(x, weight, bias), x.double() @ full.double().T + bias) < LIMITS[torch.float32]


@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_weights_are_the_references_to_the_last_bit(kind: str) -> None:
    for shape in ((16, 64), (50, 201)):
        weight, full = packed(kind, *shape)
        for dtype in LIMITS:
            assert torch.equal(unpacked(weight, dtype), full.to(dtype))


def test_every_number_of_eight_bits() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = torch.where(values.float().isnan(), 0.0, values.float()).to(torch.float8_e4m3fn)[None]
    weight = fp8.pack(values, torch.ones(1))
    full = unpacked(Packed(weight.data, weight.scale, None, "fp8", 1, 256), torch.float32)
    assert torch.equal(full, values.float())
    one = torch.eye(256)[1:2]  # the smallest of all, a subnormal
    assert product(one, Packed(weight.data, weight.scale, None, "fp8", 1, 256), None).item() == 2.0**-9


@pytest.mark.parametrize(("count", "dtype"), [(70, torch.bfloat16), (2, torch.float32), (1, torch.float32)])
def test_any_number_of_rows(count: int, dtype: torch.dtype) -> None:
    weight, full = packed("int8", 20, 70)
    x = torch.randn(1, count, 70).to(dtype)
    assert relative_error(any_product(x, weight, torch.ones(20)), x.double() @ full.double().T + 1) < LIMITS[dtype]
    assert any_product(x[:, :0], weight, None).shape == (1, 0, 20)


@pytest.mark.parametrize("dtype", LIMITS)
def test_elementwise(dtype: torch.dtype) -> None:
    x, gate, up = (torch.randn(2, 3, 600).to(dtype) for _ in range(3))
    weight = torch.randn(600).to(dtype)
    assert torch.equal(elementwise.add_parallel(x, gate, up), elementwise.add_parallel_reference(x, gate, up))
    silu = elementwise.silu_multiply_reference(gate, up)
    assert relative_error(elementwise.silu_multiply(gate, up), silu) < LIMITS[dtype]
    for rows, scale in ((x, weight), (x.view(2, 3, 6, 100), torch.randn(6, 100).to(dtype))):
        normed = elementwise.layer_norm(rows, scale, 1e-5)
        assert relative_error(normed, elementwise.layer_norm_reference(rows, scale, 1e-5)) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("tables", [1, 2])
def test_rotation_is_the_references_to_the_last_bit(dtype: torch.dtype, tables: int) -> None:
    query, key = torch.randn(2, 3, 9, 20).to(dtype), torch.randn(2, 3, 3, 20).to(dtype)
    cos, sin = torch.randn(tables, 3, 10), torch.randn(tables, 3, 10)
    for found, given in zip(elementwise.rotate(query, key, cos, sin), (query, key), strict=True):
        assert torch.equal(found, elementwise.rotate_reference(given, cos, sin))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "places", "last"), [(6, 2, 200, 150), (4, 4, 100, 0), (24, 2, 130, 129)])
def test_attention_of_one_token(dtype: torch.dtype, heads: int, groups: int, places: int, last: int) -> None:
    query = torch.randn(2, heads, 1, 20).to(dtype)
    key, value = (torch.randn(2, groups, 2 * places, 20)[:, :, ::2].to(dtype) for _ in range(2))
    key[:, :, last + 1 :] = torch.nan  # never read, or never looked at
    padding = torch.ones(2, places, dtype=torch.bool)
    padding[0, : last + 1] = False  # a row that sees nothing
    for mask in (None, padding):
        given = (query, key.nan_to_num(0.0), value, torch.tensor([last]), mask, 0.2)
        truth = attention.decode_attention_reference(*given)
        ours = attention.decode_attention(query, key, *given[2:])
        assert float((ours.float() - truth.float()).abs().max()) <= LIMITS[dtype] * float(value.abs().max())
    assert not ours[0].any()


class Asked(StaticCache):
    """Notes the layers that it attends for."""

    def attend(self, layer_idx: int, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        self.asked = [*getattr(self, "asked", []), layer_idx]
        return super().attend(layer_idx, *arguments, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fields", [{"num_key_value_heads": 2, "use_qk_norm": True}, {"hidden_act": "gelu", "attention_bias": True}]
)
@torch.no_grad()
def test_a_fused_model_is_the_plain_one(dtype: torch.dtype, fields: dict[str, Any]) -> None:
    plain = make_ours(std=0.1, num_hidden_layers=1, **fields).to(dtype)
    fused = fuse_model(copy.deepcopy(plain))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert all(type(layer) is FusedDecoderLayer for layer in fused.model.layers)
    assert fuse_model(fused) is fused
    ids, mask = random_ids(2, 5), padding_mask(2, 5, "left")
    plain.set_attn_implementation("eager")
    truth = plain(ids, attention_mask=mask).logits
    real = mask.bool()
    assert relative_error(fused(ids, attention_mask=mask).logits[real], truth[real]) < 2 * LIMITS[dtype]
    cache = Asked(fused.config, 16)
    fused(ids[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
    step = fused(ids[:, 4:], attention_mask=mask, past_key_values=cache).logits
    assert relative_error(step, truth[:, 4:]) < 2 * LIMITS[dtype]
    assert cache.asked == [0, 0], "the cache attends, as it may do by itself"


def test_gradients_go_through_the_plain_layers() -> None:
    plain = make_ours()
    fused = fuse_model(copy.deepcopy(plain))
    for model in (plain, fused):
        model(random_ids(1, 5), labels=random_ids(1, 5)).loss.backward()
    ours, theirs = (model.model.layers[0].self_attn.q_proj.weight.grad for model in (fused, plain))
    assert torch.equal(ours, theirs)
