"""A block after a past: the definition's numbers, and memory that does not grow with the past."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parity import assert_close, make_ours, random_ids
from quarterdeck import CohereConfig, CohereForCausalLM, DynamicCache, QuantizedCache, StaticCache
from quarterdeck.attention.eager import eager_attention
from quarterdeck.attention.mask import AttentionMask, make_mask
from quarterdeck.attention.sdpa import sdpa_attention


def numbers(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("past", "block", "spare"), [(1, 2, 0), (40, 7, 0), (3, 90, 0), (513, 129, 0), (9, 5, 11), (0, 5, 3)]
)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
@torch.no_grad()
def test_a_block_after_a_past(heads: int, groups: int, past: int, block: int, spare: int, dtype: torch.dtype) -> None:
    keys = past + block + spare
    query = numbers(2, heads, block, 16, seed=0, dtype=dtype)
    key, value = (numbers(2, groups, keys, 16, seed=seed, dtype=dtype) for seed in (1, 2))
    mask = make_mask(None, batch=2, queries=block, keys=keys, start=past, positions=None, device=query.device)
    ours, _ = sdpa_attention(query, key, value, mask, scale=0.25)
    exact, _ = eager_attention(query.double(), key.double(), value.double(), mask, scale=0.25)
    assert ours.dtype == dtype
    limit = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert (ours.double() - exact).abs().max() < limit * exact.abs().max()


# -- long prompts --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes; views of what is there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, one.numel())
        return made


def long_model(attention: Any = "sdpa", **changes: Any) -> CohereForCausalLM:
    """The rotary positions and the context of c4ai-command-r-v01, and little else."""
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=4099,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=8e6,
        model_max_length=131_072,
        max_position_embeddings=8192,
        initializer_range=0.5,
        attn_implementation=attention,
        **changes,
    )
    return CohereForCausalLM(config).eval()


def largest(model: CohereForCausalLM, length: int, **options: Any) -> int:
    """Of a call that reads ``length`` tokens and writes one."""
    ids = torch.randint(9, 4099, (1, length), generator=torch.Generator().manual_seed(length))
    with Largest() as mode:
        model.generate(ids, max_new_tokens=1, eos_token_id=None, **options)
    return mode.numel


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_memory_is_flat_in_the_length_of_the_prompt(cache: str) -> None:
    model, chunk = long_model(), 256
    options: dict[str, Any] = {"prefill_chunk_size": chunk, "cache_implementation": cache}
    sizes = [largest(model, length, **options) for length in (2048, 8192)]
    # activations of a block, or the logits of one position; the cache (8 numbers per token) may grow to this
    activations, cached = chunk * 64, 8192 * 8 * 5 // 4 + 8 * 64
    assert max(sizes) <= max(activations, cached)
    in_one_run = largest(model, 8192, cache_implementation=cache, prefill_chunk_size=8192)
    assert in_one_run >= 8192 * 64, "activations are of the whole prompt"


def test_prompts_are_read_in_chunks_where_nobody_says() -> None:
    model = long_model()
    assert largest(model, 8192) <= 1024 * 64 + 8192 * 8 * 5 // 4
    whole: dict[str, Any] = {"return_dict_in_generate": True, "output_hidden_states": True}
    assert largest(model, 2048, **whole) >= 2048 * 64
    states = model.generate(torch.ones(1, 2048, dtype=torch.long), max_new_tokens=1, **whole).hidden_states
    assert states[0][-1].shape[1] == 2048
    assert largest(model, 2048, logits_to_keep=0) >= 2048 * 4099
    following = long_model(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert largest(following, 2048) >= 2048 * 64


def test_a_mask_would_not_be_flat() -> None:
    assert largest(long_model("eager"), 2048, prefill_chunk_size=256) >= 256 * 2048


@pytest.mark.parametrize("make", [DynamicCache, QuantizedCache])
@torch.no_grad()
def test_chunks_are_the_whole(make: Any) -> None:
    model = make_ours(num_key_value_heads=2)
    ids = random_ids(2, 50)
    cache = make()
    parts = [model(ids[:, start : start + 7], past_key_values=cache).logits for start in range(0, 50, 7)]
    assert_close(torch.cat(parts, dim=1), model(ids).logits)


class LastRow:
    """Attention of the last query of a block alone, which is all that a model of one layer needs for its answer."""

    def __init__(self) -> None:
        self.keys = 0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
    ) -> tuple[Tensor, None]:
        self.keys = key.shape[2]
        output = torch.zeros_like(query)
        seen = AttentionMask(1, self.keys, query.device, start=self.keys - 1)
        output[:, :, -1:] = eager_attention(query[:, :, -1:], key, value, seen, scale=scale)[0]
        return output, None


def test_131072_tokens() -> None:
    """Every pair of tokens would take minutes here; the answer of one layer depends on the last row of them only."""
    length, attention = 131_072, LastRow()
    model = long_model(attention)
    ids = torch.randint(9, 4099, (1, length), generator=torch.Generator().manual_seed(1))
    chunk = 4096
    with Largest() as mode, torch.no_grad():
        cache = StaticCache(model.config, length)
        nothing = torch.empty(0, dtype=torch.int64)
        for start in range(0, length - chunk, chunk):
            model(ids[:, start : start + chunk], past_key_values=cache, logits_to_keep=nothing)
        logits = model(ids[:, -chunk:], past_key_values=cache, logits_to_keep=1).logits
    assert attention.keys == length == cache.get_seq_length()
    assert logits.shape == (1, 1, 4099)
    assert mode.numel <= max(chunk * 64, length * 8), "but for the cache, memory is that of a block"
    assert_close(logits[0, 0], expected(model, ids[0]), tolerance=1e-4)


def expected(model: CohereForCausalLM, ids: Tensor) -> Tensor:
    """The logits of the last position from the formulas, in float64 and by nothing of ours but the weights."""
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    x = weights["model.embed_tokens.weight"][ids]
    layer = "model.layers.0."

    def norm(y: Tensor, name: str) -> Tensor:
        return torch.nn.functional.layer_norm(y, (16,), weights[name + ".weight"], eps=1e-5)

    def turned(y: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None] * 8e6 ** (-torch.arange(0, 8, 2).double() / 8)  # [T, 4]
        return torch.view_as_real(
            torch.view_as_complex(y.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
        )

    n = norm(x, layer + "input_layernorm")
    places = torch.arange(len(ids)).double()
    keys = turned((n @ weights[layer + "self_attn.k_proj.weight"].T), places).flatten(-2)
    values = n @ weights[layer + "self_attn.v_proj.weight"].T
    query = (n[-1] @ weights[layer + "self_attn.q_proj.weight"].T).view(2, 8)
    query = turned(query, places[-1:].expand(2)).flatten(-2)
    attended = torch.softmax(query @ keys.T / 8**0.5, dim=-1) @ values  # [2, 8]
    gate, up, down = (weights[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    mlp = (torch.nn.functional.silu(n[-1] @ gate.T) * (n[-1] @ up.T)) @ down.T
    last = x[-1] + attended.flatten() @ weights[layer + "self_attn.o_proj.weight"].T + mlp
    return (norm(last, "model.norm") @ weights["model.embed_tokens.weight"].T * model.config.logit_scale).float()
