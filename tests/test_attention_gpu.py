"""flex_attention compiled and the real flash-attn, where there is a GPU: the model against eager, and gradients."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from parity import make_ours, padding_mask, random_ids, relative_error
from quarterdeck import CohereForCausalLM, StaticCache

GPU = "cuda"
BACKENDS = [
    "flex_attention",
    pytest.param(
        "flash_attention_2", marks=pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")
    ),
]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LIMIT = 3e-2
"""Of scale, in bfloat16."""


def both(attention: str, **fields: Any) -> tuple[CohereForCausalLM, CohereForCausalLM]:
    fields = {"hidden_size": 64, "head_dim": 16, "num_key_value_heads": 2, "max_position_embeddings": 512} | fields
    fast, plain = (make_ours(name, std=0.1, **fields) for name in (attention, "eager"))
    return fast.to(GPU, torch.bfloat16), plain.to(GPU, torch.bfloat16)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("attention", BACKENDS)
@torch.no_grad()
def test_logits(attention: str, side: str | None) -> None:
    fast, plain = both(attention)
    for length in (40, 200, 130):
        ids, mask = random_ids(3, length).to(GPU), padding_mask(3, length, side)
        mask = None if mask is None else mask.to(GPU)
        real = slice(None) if mask is None else mask.bool()
        ours, truth = fast(ids, attention_mask=mask).logits, plain(ids, attention_mask=mask).logits
        assert relative_error(ours[real], truth[real]) < LIMIT


@pytest.mark.parametrize("heads", [4, 6])  # 6 for 2: three to a group, as no kernel for few queries shares them
@pytest.mark.parametrize("attention", BACKENDS)
@torch.no_grad()
def test_steps_over_a_static_cache(attention: str, heads: int) -> None:
    fast, plain = both(attention, num_attention_heads=heads)
    ids = random_ids(2, 30).to(GPU)
    truth, cache = plain(ids).logits, StaticCache(fast.config, max_cache_len=64)
    for begin, end in ((0, 20), (20, 29), (29, 30)):
        ours = fast(ids[:, begin:end], past_key_values=cache, use_cache=True).logits
        assert relative_error(ours, truth[:, begin:end]) < LIMIT


@pytest.mark.parametrize("attention", BACKENDS)
def test_gradients_of_packed_rows(attention: str) -> None:
    models = both(attention)
    ids, positions = random_ids(1, 150).to(GPU), torch.cat([torch.arange(90), torch.arange(60)])[None].to(GPU)
    found = []
    for model in models:
        model(ids, position_ids=positions, labels=ids, use_cache=False).loss.backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert relative_error(*found) < 2 * LIMIT


@pytest.mark.parametrize("attention", BACKENDS)
def test_generation(attention: str) -> None:
    fast, plain = both(attention, eos_token_id=None)
    ids, mask = random_ids(2, 12).to(GPU), padding_mask(2, 12, "left")
    assert mask is not None
    options: dict[str, Any] = {"attention_mask": mask.to(GPU), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(fast.generate(ids, **options), plain.generate(ids, **options))
