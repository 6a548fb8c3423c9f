"""Attention over the cache at decode: every instruction set against the reference, and that against PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from quarterdeck.cache import groups
from quarterdeck.errors import InputError
from quarterdeck.kernels import native
from quarterdeck.kernels.attention import Codes, decode, decode_reference

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
SHAPES = ((1, 1, 1, 16, 1), (2, 2, 3, 24, 300), (1, 2, 8, 128, 513), (2, 1, 5, 64, 70))  # B, G, H / G, D, S


@pytest.fixture(params=native.LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if request.param not in native.levels():
        pytest.skip(f"{request.param}: {native.describe()}")
    return str(request.param)


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(x: Tensor, bits: int, tokens: int, channels: int) -> Codes:
    packed = groups.pack(x, groups.Grouping(bits, tokens, channels))
    return Codes(*packed.tensors, bits, tokens, channels)


def some_allowed(batch: int, positions: int) -> Tensor:
    allowed = made(batch, positions, seed=3) > -0.5
    allowed[:, 0] = True
    return allowed


def test_reference_is_attention_as_pytorch_has_it() -> None:
    query, (key, value) = made(2, 6, 1, 16), made(2, 2, 3, 40, 16, seed=1)
    allowed = some_allowed(2, 40)
    expected = scaled_dot_product_attention(
        query, key[:, :3], value[:, :3], allowed[:, None, None], scale=0.3, enable_gqa=True
    )
    result = decode_reference(query, [(key, value)], scale=0.3, allowed=allowed)
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_floating_caches(level: str, dtype: torch.dtype) -> None:
    for batch, heads, shared, width, positions in SHAPES:
        query = made(batch, heads * shared, 1, width).to(dtype)
        key, value = made(2, batch, heads, positions, width, seed=1).to(dtype)
        for allowed in (None, some_allowed(batch, positions)):
            expected = decode_reference(query, [(key, value)], scale=width**-0.5, allowed=allowed)
            result = decode(query, [(key, value)], scale=width**-0.5, allowed=allowed, level=level)
            torch.testing.assert_close(result, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("heads", "shared", "width", "channels"), [(2, 1, 128, 64), (1, 7, 96, 48), (2, 4, 24, 12)])
def test_codes_followed_by_recent_positions(
    level: str, bits: int, heads: int, shared: int, width: int, channels: int
) -> None:
    past, recent = made(2, 2, heads, 320, width), made(2, 2, heads, 37, width, seed=1)
    query = made(2, heads * shared, 1, width, seed=2)
    segments = [
        (codes(past[0], bits, 64, 1), codes(past[1], bits, 1, channels)),
        (recent[0].bfloat16(), recent[1].bfloat16()),
    ]
    for allowed in (None, some_allowed(2, 357)):
        expected = decode_reference(query, segments, scale=0.1, allowed=allowed)
        result = decode(query, segments, scale=0.1, allowed=allowed, level=level)
        torch.testing.assert_close(result, expected, atol=3e-6, rtol=0)
    exact = decode_reference(
        query, [(torch.cat((past[0], recent[0]), 2), torch.cat((past[1], recent[1]), 2))], scale=0.1
    )
    assert (expected - exact).abs().max() < 1  # the reference reads the codes of the cache, not something else


def test_reference_reads_codes_as_the_cache_does() -> None:
    x = made(1, 2, 64, 32)
    query, value = made(1, 2, 1, 32, seed=1), made(1, 2, 64, 32, seed=2)
    for bits in (4, 8):
        packed = groups.pack(x, groups.Grouping(bits, 64, 1))
        expected = decode_reference(query, [(groups.unpack(packed, torch.float32), value)], scale=0.2)
        result = decode_reference(query, [(codes(x, bits, 64, 1), value)], scale=0.2)
        torch.testing.assert_close(result, expected)


def test_views_of_a_growing_cache_are_read_in_place(level: str) -> None:
    room = made(2, 2, 2, 400, 64)
    key, value = room[:, :, :, :123]
    query = made(2, 4, 1, 64, seed=1)
    expected = decode_reference(query, [(key, value)], scale=0.1)
    torch.testing.assert_close(decode(query, [(key, value)], scale=0.1, level=level), expected, atol=3e-6, rtol=0)
    turned = key.transpose(2, 3).contiguous().transpose(2, 3)  # positions are not rows: copied, not misread
    torch.testing.assert_close(decode(query, [(turned, value)], scale=0.1, level=level), expected, atol=3e-6, rtol=0)


def test_who_sees_nothing_gets_zeros(level: str) -> None:
    key, value = made(2, 2, 1, 600, 32)
    allowed = torch.zeros(2, 600, dtype=torch.bool)
    allowed[1, 599] = True
    result = decode(made(2, 2, 1, 32, seed=1), [(key, value)], scale=0.1, allowed=allowed, level=level)
    assert not result[0].any()
    torch.testing.assert_close(result[1, :, 0], value[1, 0, 599].expand(2, 32))


def test_large_scores_do_not_overflow_and_nan_is_not_hidden(level: str) -> None:
    key, value = made(2, 1, 1, 300, 16)
    query = 1e4 * made(1, 1, 1, 16, seed=1)
    expected = decode_reference(query, [(key, value)], scale=1.0)
    torch.testing.assert_close(decode(query, [(key, value)], scale=1.0, level=level), expected, atol=1e-4, rtol=1e-3)
    key[0, 0, 290] = torch.nan
    assert decode(query, [(key, value)], scale=1.0, level=level).isnan().all()


def test_threads_give_the_same(level: str) -> None:
    key, value = made(2, 2, 4, 1100, 64)
    query = made(2, 8, 1, 64, seed=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = decode(query, [(key, value)], scale=0.1, level=level)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(two, decode(query, [(key, value)], scale=0.1, level=level))


def test_what_does_not_fit_is_refused() -> None:
    query, key = made(1, 4, 1, 16), made(1, 2, 8, 16)
    with pytest.raises(InputError, match=r"\[B, H, 1, D\]"):
        decode(made(1, 4, 2, 16), [(key, key)], scale=1.0)
    with pytest.raises(InputError, match="do not fit queries"):
        decode(query, [(key[..., :8], key)], scale=1.0)
    with pytest.raises(InputError, match="8 keys and 7 values"):
        decode(query, [(key, key[:, :, :7])], scale=1.0)
    with pytest.raises(InputError, match="number of key-value heads"):
        decode(query, [(key, key), (key[:, :1], key[:, :1])], scale=1.0)
    with pytest.raises(InputError, match=r"bool \[1, 8\]"):
        decode(query, [(key, key)], scale=1.0, allowed=torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(InputError, match="do not fit scales"):
        decode(query, [(codes(key, 8, 8, 1)._replace(tokens=4), key)], scale=1.0)
    with pytest.raises(InputError, match="cannot run here"):
        decode(query, [(key, key)], scale=1.0, level="neon")


def test_codes_without_heads_or_groups_and_other_devices_are_refused() -> None:
    query, key = made(1, 2, 1, 16), codes(made(1, 2, 8, 16), 8, 4, 16)
    none = Codes(key.codes[:, :0], key.scales[:, :0], key.minimums[:, :0], 8, 4, 16)
    for wrong, message in ((key._replace(tokens=0), "0 x 16"), (none, "do not fit")):
        with pytest.raises(InputError, match=message):
            decode(query, [(wrong, wrong)], scale=1.0)
    elsewhere = key._replace(scales=key.scales.to("meta"))
    with pytest.raises(InputError, match="query is on cpu"):
        decode(query, [(key, elsewhere)], scale=1.0)
