"""Several documents in a row: each as if it were alone, told by positions or by lengths, with every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parity import assert_close, make_ours, make_pair, padding_mask, random_ids, transformers
from quarterdeck import CohereForCausalLM
from quarterdeck.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
BACKENDS = ["eager", "sdpa", "flex_attention"]  # flash_attention_2 is in test_flash_attention.py
LENGTHS = [10, 7, 4]


def packed() -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Three documents in one row: ids, positions, and what collators for flash-attn add."""
    ids, mask = random_ids(3, 10), padding_mask(3, 10, "left")
    assert mask is not None
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    begins = torch.tensor([0, 10, 17, 21], dtype=torch.int32)
    told = {"cu_seq_lens_q": begins, "cu_seq_lens_k": begins, "max_length_q": 10, "max_length_k": 10}
    return ids[mask.bool()][None], positions[None], told


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", BACKENDS)
@torch.no_grad()
def test_packed_rows_equal_padded_rows(attention: str, side: str) -> None:
    model = make_ours(attention, num_key_value_heads=2, use_qk_norm=True)
    row, positions, told = packed()
    padded = torch.zeros(3, 10, dtype=torch.long)
    mask = padding_mask(3, 10, side)
    assert mask is not None
    padded[mask.bool()] = row[0]
    whole = model(padded, attention_mask=mask, use_cache=False).logits[mask.bool()]
    flat = model(row, position_ids=positions, use_cache=False).logits[0]
    assert_close(flat, whole)
    assert torch.equal(model(row, position_ids=positions, **told).logits[0], flat), "lengths, with a cache to fill"
    assert_close(model(row, use_cache=False, **told).logits[0], whole)  # rotary positions are relative


@torch.no_grad()
def test_lengths_of_several_rows() -> None:
    model = make_ours("sdpa")
    ids = random_ids(2, 6)
    begins = torch.tensor([0, 2, 6, 11, 12])  # the rows are laid end to end, so 6 is where the second begins
    ours = model(ids, cu_seq_lens_q=begins, use_cache=False).logits
    for row, start, end in ((0, 0, 2), (0, 2, 6), (1, 0, 5), (1, 5, 6)):
        assert_close(ours[row, start:end], model(ids[row : row + 1, start:end]).logits[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_batch_of_a_collator_for_flash_attn(attention: str) -> None:
    documents = [{"input_ids": random_ids(length, seed=length).tolist()} for length in (5, 8, 3)]
    collator = transformers.DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)
    batch = collator(documents)
    assert {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"} <= set(batch)
    pair = make_pair(attention, num_key_value_heads=2)
    ours, theirs = pair.ours(**batch), pair.theirs(**batch, use_cache=False)
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    assert_close(pair.ours.model.embed_tokens.weight.grad, pair.theirs.model.embed_tokens.weight.grad)
    alone = [pair.ours(torch.tensor([document["input_ids"]])).logits[0] for document in documents]
    assert_close(ours.logits[0], torch.cat(alone))


@torch.no_grad()
def test_lengths_in_a_compiled_program() -> None:
    model = make_ours("sdpa")
    row, positions, told = packed()
    torch._dynamo.reset()
    program = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert_close(program(row, position_ids=positions, **told).logits, model(row, position_ids=positions, **told).logits)
    torch._dynamo.reset()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not_from_0": ({"cu_seq_lens_q": torch.tensor([1, 6])}, r"\[1, 6\], but must rise from 0 to 6"),
    "not_to_the_end": ({"cu_seq_lens_q": torch.tensor([0, 3, 5])}, r"\[0, 3, 5\], but must rise from 0 to 6"),
    "backward": ({"cu_seq_lens_q": torch.tensor([0, 4, 2, 6])}, "must rise"),
    "nothing": ({"cu_seq_lens_q": torch.tensor([], dtype=torch.int32)}, "must rise from 0 to 6"),
    "floating": ({"cu_seq_lens_q": torch.tensor([0.0, 6.0])}, r"float32 \[2\], but must be integers"),
    "a_list": ({"cu_seq_lens_q": [0, 6]}, "cu_seq_lens_q is a list, but must be a tensor"),
    "keys_alone": ({"cu_seq_lens_k": torch.tensor([0, 6])}, "belong to cu_seq_lens_q"),
    "length_alone": ({"max_length_q": 6}, "belong to cu_seq_lens_q"),
    "other_keys": (
        {"cu_seq_lens_q": torch.tensor([0, 6]), "cu_seq_lens_k": torch.tensor([0, 3, 6])},
        "cu_seq_lens_k is not cu_seq_lens_q",
    ),
    "with_a_mask": (
        {"cu_seq_lens_q": torch.tensor([0, 6]), "attention_mask": torch.ones(1, 6)},
        "leave out attention_mask",
    ),
    "with_places": (
        {"cu_seq_lens_q": torch.tensor([0, 6]), "cache_position": torch.arange(6)},
        "leave out .*cache_position",
    ),
}


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    return make_ours("sdpa")


@pytest.mark.parametrize("case", REFUSED)
def test_lengths_that_cannot_be(model: CohereForCausalLM, case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        model(random_ids(1, 6), **given)


def test_lengths_after_a_past_are_refused(model: CohereForCausalLM) -> None:
    past = model(random_ids(1, 3), use_cache=True).past_key_values
    with pytest.raises(InputError, match=r"leave out .*past_key_values"):
        model(random_ids(1, 6), past_key_values=past, cu_seq_lens_q=torch.tensor([0, 6]))


def test_lengths_that_are_none_say_nothing(model: CohereForCausalLM) -> None:
    none = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"))
    ids = random_ids(1, 6)
    assert torch.equal(model(ids, **none).logits, model(ids).logits)
