"""flash-attn without a GPU: a stand-in with its signatures, which computes what its documentation says.

The stand-in follows the published meaning of version 2.1 and later: rows ``[B, T, H, D]``, or all rows laid end to
end with their begins; grouped heads; a causal mask aligned to the bottom right; a row that sees nothing gives zeros;
float16 and bfloat16 only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity import assert_close, make_ours, padding_mask, random_ids, relative_error
from quarterdeck import CohereForCausalLM, StaticCache
from quarterdeck.attention import AttentionMask, flash
from quarterdeck.attention.eager import eager_attention
from quarterdeck.errors import InputError, MissingPackageError, UnsupportedOptionError

CPU = torch.device("cpu")
BF16 = torch.bfloat16
LIMIT = 2e-2
"""Of scale, in bfloat16, which has 8 bits."""


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert q.dtype == k.dtype == v.dtype
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    assert q.ndim == k.ndim == v.ndim == 4
    assert q.shape[2] % k.shape[2] == 0
    assert window_size == (-1, -1)
    repeats = q.shape[2] // k.shape[2]
    query, key, value = (tensor.transpose(1, 2).float() for tensor in (q, k, v))
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    queries, keys = query.shape[2], key.shape[2]
    scores = query @ key.transpose(2, 3) * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) | (not causal)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    weights = torch.nn.functional.dropout(weights, dropout_p)
    return (weights @ value).transpose(1, 2).to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    assert q.ndim == k.ndim == v.ndim == 3
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q.shape == cu_seqlens_k.shape
    assert len(q), "kernels are not launched over nothing"
    assert int(cu_seqlens_q.diff().max()) == max_seqlen_q
    assert int(cu_seqlens_k.diff().max()) == max_seqlen_k
    assert isinstance(max_seqlen_q, int)
    assert isinstance(max_seqlen_k, int)
    assert (int(cu_seqlens_q[-1]), int(cu_seqlens_k[-1])) == (len(q), len(k))
    output = torch.zeros_like(q)
    spans_q, spans_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for begin, end, begin_k, end_k in zip(spans_q, spans_q[1:], spans_k, spans_k[1:], strict=False):
        row, keys, values = q[None, begin:end], k[None, begin_k:end_k], v[None, begin_k:end_k]
        done = flash_attn_func(row, keys, values, dropout_p, softmax_scale, causal)[0]
        output = torch.cat((output[:begin], done, output[end:]))
    return output


def stand_in(version: str = "2.8.3.post1") -> Any:
    """A module like ``flash_attn``; its ``calls`` says which functions ran."""
    module: Any = ModuleType("flash_attn")
    module.__version__, module.calls = version, []
    for function in (flash_attn_func, flash_attn_varlen_func):
        setattr(module, function.__name__, noted(function, module.calls))
    return module


def noted(function: Callable[..., Tensor], calls: list[str]) -> Callable[..., Tensor]:
    def call(*given: Any, **options: Any) -> Tensor:
        calls.append(function.__name__)
        return function(*given, **options)

    return call


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``flash_attn`` as if it were installed and ran on the CPU."""
    module = stand_in()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "DEVICES", frozenset({"cuda", "cpu"}))
    return module


def both(**fields: Any) -> tuple[CohereForCausalLM, CohereForCausalLM]:
    """The same random bfloat16 model with flash and with eager attention."""
    return tuple(  # type: ignore[return-value]
        make_ours(name, std=0.1, num_key_value_heads=2, **fields).to(BF16) for name in ("flash_attention_2", "eager")
    )


# -- the function --------------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> AttentionMask:
    """Whatever a model may ask for: any padding, with past keys and with room behind; or packed rows."""
    rows, queries = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    if draw(st.booleans()):
        begins = st.lists(st.sampled_from([0, 0, 1]), min_size=queries, max_size=queries)
        documents = torch.tensor([draw(begins) for _ in range(rows)]).cumsum(-1)
        padding = draw(st.none() | st.just(torch.arange(queries).expand(rows, -1) < max(1, queries - 1)))
        return AttentionMask(queries, queries, CPU, documents=documents, padding=padding)
    start, spare = draw(st.integers(0, 5)), draw(st.sampled_from([0, 0, 3]))
    end = start + queries
    known = draw(st.sampled_from([end, end + spare]))
    flags = st.lists(st.booleans(), min_size=known, max_size=known)
    padding = draw(st.none() | st.builds(torch.tensor, st.lists(flags, min_size=rows, max_size=rows)))
    places = draw(st.none() | st.just(torch.arange(start, end)))
    return AttentionMask(queries, end + spare, CPU, 0 if places is not None else start, places, padding)


@given(mask=masks(), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_flash_equals_eager(mask: AttentionMask, groups: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn", stand_in("2.1.0"))
        patch.setattr(flash, "DEVICES", frozenset({"cpu"}))
        generator = torch.Generator().manual_seed(seed)
        given_rows = [len(t) for t in (mask.padding, mask.documents) if t is not None]
        rows = given_rows[0] if given_rows else 2
        query = torch.randn(rows, 4, mask.queries, 8, generator=generator).to(BF16)
        key, value = torch.randn(2, rows, groups, mask.keys, 8, generator=generator).to(BF16)
        ours, nothing = flash.flash_attention(query, key, value, mask, scale=0.3)
        assert nothing is None
        truth, _ = eager_attention(query.float(), key.float(), value.float(), mask, scale=0.3)
        assert ours.dtype == BF16
        assert ours.shape == query.shape
        real = torch.ones(rows, mask.queries, dtype=torch.bool)
        if mask.padding is not None:
            real = mask.padding[:, mask.query_positions()]
            assert not ours.transpose(1, 2)[~real].any(), "queries that are padding"
        if real.any():
            assert relative_error(ours.transpose(1, 2)[real], truth.transpose(1, 2)[real]) < LIMIT


def test_gradients_reach_queries_keys_and_values(package: Any) -> None:
    padding = padding_mask(3, 8, "left")
    assert padding is not None
    mask, found = AttentionMask(8, 8, CPU, padding=padding.bool()), []
    for attend in (flash.flash_attention, eager_attention):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(3, n, 8, 8, generator=generator).to(BF16).requires_grad_() for n in (4, 2, 2)]
        output, _ = attend(*tensors, mask, scale=0.3)
        found.append(torch.autograd.grad((output.float() * padding[:, None, :, None]).square().sum(), tensors))
    for ours, theirs in zip(*found, strict=True):
        assert relative_error(ours, theirs) < 5e-2


def test_rows_are_worked_out_once_for_all_layers(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    plain = flash._spans
    monkeypatch.setattr(flash, "_spans", lambda mask: looks.append(mask) or plain(mask))
    fast, _ = both(num_hidden_layers=3)
    with torch.no_grad():
        fast(random_ids(3, 10), attention_mask=padding_mask(3, 10, "left"))
    assert len(looks) == 1
    assert package.calls == ["flash_attn_varlen_func"] * 3


def test_dropout_is_the_kernels(package: Any) -> None:
    ones = torch.ones(1, 2, 16, 8, dtype=BF16)
    kept, _ = flash.flash_attention(ones, ones, ones, AttentionMask(16, 16, CPU), scale=1.0)
    dropped, _ = flash.flash_attention(ones, ones, ones, AttentionMask(16, 16, CPU), scale=1.0, dropout=0.5)
    assert torch.equal(kept, ones)
    assert not torch.equal(dropped, ones)
    model = make_ours("flash_attention_2", attention_dropout=0.5).to(BF16)
    ids = random_ids(1, 12)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


# -- the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [None, "left", "right"])
@torch.no_grad()
def test_logits_equal_those_of_eager(package: Any, side: str | None) -> None:
    fast, plain = both(use_qk_norm=True)
    ids, mask = random_ids(3, 11), padding_mask(3, 11, side)
    real = slice(None) if mask is None else mask.bool()
    assert (
        relative_error(fast(ids, attention_mask=mask).logits[real], plain(ids, attention_mask=mask).logits[real])
        < LIMIT
    )
    assert set(package.calls) == {"flash_attn_func" if side is None else "flash_attn_varlen_func"}


@pytest.mark.parametrize("cache", ["dynamic", "static", "static_with_places"])
@pytest.mark.parametrize("side", [None, "left"])
@torch.no_grad()
def test_steps_with_a_cache(package: Any, side: str | None, cache: str) -> None:
    fast, plain = both()
    ids, mask = random_ids(3, 9), padding_mask(3, 9, side)
    stored: Any = None if cache == "dynamic" else StaticCache(fast.config, max_cache_len=14)
    whole = plain(ids, attention_mask=mask).logits
    for begin, end in ((0, 5), (5, 8), (8, 9)):
        places = torch.arange(begin, end) if cache == "static_with_places" else None
        seen = None if mask is None else mask[:, :end]
        output = fast(ids[:, begin:end], seen, past_key_values=stored, cache_position=places, use_cache=True)
        stored = output.past_key_values
        real = slice(None) if mask is None else mask[:, begin:end].bool()
        assert relative_error(output.logits[real], whole[:, begin:end][real]) < LIMIT


def test_generation_and_static_generation(package: Any) -> None:
    fast, plain = both(eos_token_id=None)
    options: dict[str, Any] = {"attention_mask": padding_mask(2, 6, "left"), "max_new_tokens": 8, "do_sample": False}
    ids = random_ids(2, 6)
    truth = plain.generate(ids, **options)
    assert torch.equal(fast.generate(ids, **options), truth)
    assert torch.equal(fast.generate(ids, cache_implementation="static", **options), truth)
    assert package.calls


@torch.no_grad()
def test_packed_rows_equal_padded_rows(package: Any) -> None:
    fast, _ = both()
    ids, mask = random_ids(3, 10), padding_mask(3, 10, "left")
    assert mask is not None
    padded = fast(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    lengths = mask.sum(-1).tolist()
    packed, positions = ids[mask.bool()][None], torch.cat([torch.arange(n) for n in lengths])[None]
    package.calls.clear()
    flat = fast(packed, position_ids=positions, use_cache=False).logits[0]
    assert set(package.calls) == {"flash_attn_varlen_func"}
    assert relative_error(flat, padded) < LIMIT
    begins = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)
    told = {"cu_seq_lens_q": begins, "cu_seq_lens_k": begins, "max_length_q": 10, "max_length_k": 10}
    assert torch.equal(fast(packed, position_ids=positions, use_cache=False, **told).logits[0], flat)


def test_output_attentions_come_from_eager(package: Any) -> None:
    fast, plain = both()
    ids = random_ids(1, 6)
    ours, theirs = fast(ids, output_attentions=True), plain(ids, output_attentions=True)
    assert torch.equal(ours.attentions[1], theirs.attentions[1])
    assert not package.calls


def test_a_whole_program_without_breaks(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # what can be compiled: no padding and no places; nothing here may look at a value
    monkeypatch.setattr(package, "flash_attn_func", flash_attn_func)
    torch._dynamo.reset()
    fast, _ = both()
    ids = random_ids(2, 6)
    with torch.no_grad():
        program = torch.compile(fast.forward, fullgraph=True, backend="eager")
        assert_close(program(ids).logits, fast(ids).logits)
    torch._dynamo.reset()


# -- types ---------------------------------------------------------------------------------------------


def test_float32_is_refused_with_what_to_do(package: Any) -> None:
    model = make_ours("flash_attention_2")  # which is the type that models are loaded in
    with pytest.raises(
        UnsupportedOptionError, match=r"only, and the model in torch.float32.*bfloat16.*autocast.*'sdpa'"
    ):
        model(random_ids(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_makes_a_float32_model_run(package: Any, dtype: torch.dtype) -> None:
    model = make_ours("flash_attention_2", std=0.1, use_qk_norm=True)
    plain = make_ours("eager", std=0.1, use_qk_norm=True)
    ids = random_ids(2, 7)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert package.calls
    assert relative_error(loss, plain(ids, labels=ids).loss) < 1e-2
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    assert gradient.dtype == torch.float32
    assert gradient.any()


def test_float32_queries_under_autocast_are_rounded(package: Any) -> None:
    tensors = torch.randn(3, 1, 2, 5, 8)
    with torch.autocast("cpu", dtype=BF16):
        output, _ = flash.flash_attention(*tensors, AttentionMask(5, 5, CPU), scale=0.3)
    assert output.dtype == BF16
    with torch.autocast("cpu", enabled=False), pytest.raises(UnsupportedOptionError, match="float32"):
        flash.flash_attention(*tensors, AttentionMask(5, 5, CPU), scale=0.3)


# -- what is refused -----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[AttentionMask, type[Exception], str]] = {
    "4d": (AttentionMask(4, 4, CPU, explicit=torch.ones(1, 1, 4, 4).bool()), UnsupportedOptionError, "no 4-D"),
    "window": (AttentionMask(4, 4, CPU, window=2), UnsupportedOptionError, "no attention window"),
    "places": (
        AttentionMask(4, 8, CPU, positions=torch.tensor([0, 2, 3, 4])),
        UnsupportedOptionError,
        r"follow one another, not cache_position \[0, 2, 3, 4\]",
    ),
    "short": (
        AttentionMask(4, 8, CPU, start=2, padding=torch.ones(1, 5).bool()),
        InputError,
        r"shape \[1, 5\], but past and new tokens are 6",
    ),
    "packed_with_past": (
        AttentionMask(4, 6, CPU, start=2, documents=torch.zeros(1, 6)),
        UnsupportedOptionError,
        "without a cache",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_masks_that_have_no_kernel(package: Any, case: str) -> None:
    mask, error, message = REFUSED[case]
    tensors = [torch.zeros(1, 2, n, 8, dtype=BF16) for n in (mask.queries, mask.keys, mask.keys)]
    with pytest.raises(error, match=message):
        flash.flash_attention(*tensors, mask, scale=1.0)


def test_where_it_cannot_run_it_is_refused_when_chosen(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_ours("sdpa").to(BF16)
    monkeypatch.setattr(flash, "DEVICES", frozenset({"cuda"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedOptionError, match=r"runs on GPUs, and torch sees none: choose 'sdpa'"):
        model.set_attn_implementation("flash_attention_2")
    with pytest.raises(UnsupportedOptionError, match="torch sees none"):
        make_ours("flash_attention_2")
    assert model.config.attn_implementation == "sdpa"
    # where there is a GPU, the model may still be moved to it; what is not moved says so
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model.set_attn_implementation("flash_attention_2")
    with pytest.raises(UnsupportedOptionError, match=r"the model is on cpu: move it with model.to\('cuda'\)"):
        model(random_ids(1, 4))


def test_a_missing_package_is_named_when_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    model = make_ours("sdpa")
    for choose in (model.set_attn_implementation, make_ours):
        with pytest.raises(MissingPackageError, match=r"'flash_attention_2' needs .*: pip install flash-attn$"):
            choose("flash_attention_2")
    assert isinstance(MissingPackageError("a", None, "b"), ImportError)
    assert model.config.attn_implementation == "sdpa"
    model.config._attn_implementation = "flash_attention_2"  # unseen by the model
    with pytest.raises(MissingPackageError, match="pip install flash-attn"):
        model(random_ids(1, 4))


def test_an_old_package_is_refused(package: Any) -> None:
    package.__version__ = "2.0.9"
    with pytest.raises(MissingPackageError, match=r"2.0.9 is too old, 2.1 is needed.*pip install flash-attn"):
        make_ours("flash_attention_2")
