"""A quantized cache that is attended to where it lies, beside the same cache read back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parity import TOLERANCE, assert_close, make_ours, padding_mask, random_ids
from quarterdeck import QuantizedCache
from quarterdeck.attention.eager import eager_attention
from quarterdeck.cache import quantized
from quarterdeck.errors import InputError
from quarterdeck.kernels import native

BLOCKS: dict[str, Any] = {"q_group_size": 8, "residual_length": 8}
HEADS = {"every head its own": 4, "two for four": 2, "one for four": 1}

needs_kernels = pytest.mark.skipif(not native.levels(), reason="the native library is not built")


class Calls:
    """Counts, and goes on to the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._decode = 0, quantized.decode
        monkeypatch.setattr(quantized, "decode", self)

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        self.count += 1
        return self._decode(*arguments, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@contextmanager
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(native, "levels", lambda: ())
        yield


def assert_steps_agree(
    model: nn.Module, ids: Tensor, prompt: int, monkeypatch: pytest.MonkeyPatch, side: str | None = None, **options: Any
) -> None:
    """Runs a prompt and then the tokens after it, each of them on the cache as it is and on a copy that is read back.

    A copy for each step: over several, the rounding of a float32 sum may move a code by one.
    """
    mask = padding_mask(*ids.shape, side)
    cache = QuantizedCache(**BLOCKS, **options)
    model(ids[:, :prompt], attention_mask=None if mask is None else mask[:, :prompt], past_key_values=cache)
    for end in range(prompt + 1, ids.shape[1] + 1):
        given = None if mask is None else mask[:, :end]
        twin = copy.deepcopy(cache)
        ours = model(ids[:, end - 1 : end], attention_mask=given, past_key_values=cache).logits
        with without_kernels(monkeypatch):
            read_back = model(ids[:, end - 1 : end], attention_mask=given, past_key_values=twin).logits
        assert_close(ours, read_back, TOLERANCE)
        for mine, its in zip(cache, twin, strict=True):
            assert mine[0].shape == its[0].shape == (ids.shape[0], mine[0].shape[1], end, mine[0].shape[3])
            assert_close(mine[0], its[0], 0.1)
            assert_close(mine[1], its[1], 0.1)


@needs_kernels
@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("groups", HEADS.values(), ids=list(HEADS))
@pytest.mark.parametrize("nbits", [4, 8])
@torch.no_grad()
def test_a_step_in_place_is_the_step_read_back(
    nbits: int, groups: int, side: str | None, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20 steps: the exact rest fills, a block is quantized, and the rest fills again
    model, ids = make_ours(num_key_value_heads=groups, head_dim=16), random_ids(3, 50)
    assert_steps_agree(model, ids, 30, monkeypatch, side, nbits=nbits)
    assert calls.count == 2 * 20, "one for each layer and step"


@needs_kernels
@pytest.mark.parametrize("prompt", [3, 8, 16], ids=["less than a rest", "a rest and no block", "a block"])
@torch.no_grad()
def test_from_an_exact_rest_to_blocks(prompt: int, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_ours(head_dim=8), random_ids(1, prompt + 14)
    assert_steps_agree(model, ids, prompt, monkeypatch, nbits=8)
    assert calls.count == 2 * 14


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_it_is_nearer_to_the_truth_than_reading_back(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 1, 2, 200, 32, generator=generator).to(dtype)
    query = torch.randn(1, 8, 1, 32, generator=generator).to(dtype)
    cache = QuantizedCache(**BLOCKS)
    cache.update(key[:, :, :199], value[:, :, :199], 0)
    new = key[:, :, 199:], value[:, :, 199:]
    layer = cache.layer(0)
    assert isinstance(layer, quantized.QuantizedLayer)
    segments = layer.segments(*new)
    ours = quantized.decode(query, segments, scale=0.2)
    exact = quantized.decode(query.float(), segments, scale=0.2, level="reference")
    read_back = nn.functional.scaled_dot_product_attention(query, *cache.update(*new, 0), scale=0.2, enable_gqa=True)
    assert 0 < (ours - exact).abs().mean() <= (read_back - exact).abs().mean()


class Largest(TorchDispatchMode):
    """Notes the most numbers that any operator returned, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = ([leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)] for of in (args, result))
        memory = {tensor.untyped_storage().data_ptr() for tensor in given}
        new = (tensor.numel() for tensor in made if tensor.untyped_storage().data_ptr() not in memory)
        self.numbers = max(self.numbers, *new, 0)
        return result


@needs_kernels
@torch.no_grad()
def test_no_temporary_of_the_size_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_ours(head_dim=16), random_ids(1, 1200)
    cache = QuantizedCache(q_group_size=32, residual_length=32)
    model(ids[:, :-2], past_key_values=cache)
    whole = 4 * 1190 * 16  # one layer's keys: heads, positions, width
    with Largest() as largest:
        model(ids[:, -2:-1], past_key_values=cache)
    assert largest.numbers < whole / 10
    with without_kernels(monkeypatch), Largest() as largest:
        model(ids[:, -1:], past_key_values=cache)
    assert largest.numbers > whole, "which is what is saved"


@needs_kernels
@torch.no_grad()
def test_rows_that_moved_are_read_where_they_are(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, rows = make_ours(head_dim=16), random_ids(3, 42), torch.tensor([2, 2, 0])
    logits = []
    for native_ones in (True, False):
        cache = QuantizedCache(nbits=8, **BLOCKS)
        model(ids[:, :40], past_key_values=cache)
        cache.select(rows)
        cache.crop(35)
        with nullcontext() if native_ones else without_kernels(monkeypatch):
            logits.append(model(ids[rows, 35:36], past_key_values=cache).logits)
    assert calls.count == 2
    assert_close(*logits, 10 * TOLERANCE)


@needs_kernels
@pytest.mark.parametrize(
    "case", ["eager", "attentions", "explicit", "two positions", "own function", "a gradient", "a tangent"]
)
def test_what_is_read_back(case: str, calls: Calls) -> None:
    model, ids = make_ours(head_dim=16), random_ids(2, 40)
    cache = QuantizedCache(nbits=8, **BLOCKS)
    new, options = ids[:, 38:39], {}
    with torch.no_grad():
        model(ids[:, :38], past_key_values=cache)
    if case == "eager":
        model.set_attn_implementation("eager")
    elif case == "attentions":
        options = {"output_attentions": True}
    elif case == "explicit":
        options = {"attention_mask": torch.ones(2, 1, 1, 39, dtype=torch.bool)}
    elif case == "two positions":
        new = ids[:, 38:]
    elif case == "own function":
        model.set_attn_implementation(lambda *given, **named: eager_attention(*given, **named))
    forward = forward_ad.dual_level() if case == "a tangent" else nullcontext()
    with torch.set_grad_enabled(case == "a gradient"), forward:
        output = model(new, past_key_values=cache, **options)
    assert calls.count == 0
    if case == "attentions":
        assert output.attentions[0].shape == (2, 4, 1, 39)
    if case == "a gradient":
        output.logits.sum().backward()
        assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 0


@needs_kernels
@torch.no_grad()
def test_a_compiled_step_reads_back(calls: Calls) -> None:
    model, ids = make_ours(head_dim=16), random_ids(1, 32)
    caches = [QuantizedCache(nbits=8, **BLOCKS) for _ in range(2)]
    for cache in caches:
        model(ids[:, :31], past_key_values=cache)
    plain = model(ids[:, 31:], past_key_values=caches[0]).logits
    before = calls.count
    compiled = torch.compile(model, backend="eager")
    assert_close(compiled(ids[:, 31:], past_key_values=caches[1]).logits, plain, 10 * TOLERANCE)
    assert calls.count == before > 0
    torch.compiler.reset()


@needs_kernels
@torch.no_grad()
def test_what_does_not_fit_is_refused_before_anything_is_stored() -> None:
    cache = QuantizedCache(**BLOCKS)
    model = make_ours(head_dim=16)
    model(random_ids(2, 20), past_key_values=cache)
    with pytest.raises(InputError, match="a batch of 2, but the input has 3"):
        model(random_ids(3, 1), past_key_values=cache)
    with pytest.raises(InputError, match=r"holds torch.float32, but the input is torch.bfloat16"):
        model.to(torch.bfloat16)(random_ids(2, 1), past_key_values=cache)
    assert cache.get_seq_length() == 20
