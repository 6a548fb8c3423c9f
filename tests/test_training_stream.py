"""A stream of documents, with beginnings that several share, trains as rows of whole documents do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.errors import InputError
from quarterdeck.kernels.packed_attention import PackedLayout
from quarterdeck.training.attention import PackedAttention
from quarterdeck.training.packing import Ids, PackedRows, pack, pack_stream
from quarterdeck.training.trainer import DeviceRows, supervised_loss


def document(preamble: int, length: int, seed: int) -> Ids:
    """Ids that begin with a preamble of their number; the last third is to be learned."""
    rng = np.random.default_rng(seed)
    body = rng.integers(3, 100, size=length).astype(np.uint16)
    ids = np.concatenate([np.arange(100, 100 + preamble, dtype=np.uint16), body])
    return ids, np.arange(len(ids)) >= preamble + 2 * length // 3


def model(seed: int = 0) -> CohereForCausalLM:
    torch.manual_seed(seed)
    config = CohereConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return CohereForCausalLM(config)


def loss_and_gradients(packed: PackedRows, layout: object = None) -> tuple[float, list[torch.Tensor]]:
    one = model()
    if layout is not None:
        attention = PackedAttention()
        attention.layout = PackedLayout(torch.from_numpy(layout))
        one.config.attn_implementation = attention
    loss = supervised_loss(one, DeviceRows.of(packed, torch.device("cpu")))
    loss.backward()
    return float(loss.detach()), [p.grad for p in one.parameters() if p.grad is not None]


def test_a_shared_beginning_is_there_once_and_changes_no_gradient() -> None:
    documents = [document(70, 30, 1), document(70, 9, 2), document(0, 40, 3), document(70, 51, 4), document(80, 12, 5)]
    stream = pack_stream(documents, tokens=10**6)
    rows = pack(documents, rows=5, length=140)
    assert stream.documents == rows.documents == 5
    assert rows.used == 70 + 29 + 70 + 8 + 39 + 70 + 50 + 80 + 11
    assert stream.used == rows.used - 3 * 70  # four documents begin with the same 70 tokens
    assert stream.used == len(stream.positions[0]) == stream.layout[-1, 1]
    loss, gradients = loss_and_gradients(stream, stream.layout)
    wanted, expected = loss_and_gradients(rows)
    assert loss == pytest.approx(wanted, rel=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-7)


def test_nothing_that_is_to_be_learned_is_shared() -> None:
    ids = np.arange(100, dtype=np.uint16)
    documents = [(ids, np.arange(100) >= learned) for learned in (80, 70, 90)]
    stream = pack_stream(documents, tokens=10**6)
    assert stream.layout[0].tolist() == [0, 69, 0, 0]  # the place before the first learned token asks for it
    assert len(stream.asked) == 20 + 30 + 10
    flat = stream.ids[0]
    assert all(flat[place] + 1 == target for place, target in zip(stream.asked, stream.targets, strict=True))


def test_a_stream_ends_at_its_size_and_leaves_out_what_is_too_long() -> None:
    endless = (document(0, 11 if n % 2 else 60, n) for n in itertools.count())
    stream = pack_stream(endless, tokens=95, longest=50)
    assert (stream.documents, stream.used) == (10, 100)
    with pytest.raises(InputError, match="at least two tokens"):
        pack_stream([document(0, 60, 1)], tokens=95, longest=50)
    too_long = (document(0, 60, n) for n in itertools.count())
    with pytest.raises(InputError, match="1000 documents in a row have not 1 to 50 tokens"):
        pack_stream(too_long, tokens=95, longest=50)  # which would go on for ever


def test_a_stream_is_filled_up_with_a_document_of_its_own() -> None:
    documents = [document(0, 20, 1), document(0, 30, 2)]
    stream = pack_stream(documents, tokens=10**6, multiple=64)
    assert (stream.ids.shape, stream.used, stream.layout[-1].tolist()) == ((1, 64), 48, [48, 64, 48, 48])
    assert stream.asked.max() < 48
    loss, _ = loss_and_gradients(stream, stream.layout)
    assert loss == pytest.approx(loss_and_gradients(pack(documents, rows=2, length=40))[0], rel=1e-5)


def test_packed_attention_refuses_what_it_would_get_wrong() -> None:
    one = model()
    one.config.attn_implementation = PackedAttention()
    with pytest.raises(InputError, match="after its layout was set"):
        one(input_ids=torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(InputError, match="2 rows"):
        one(input_ids=torch.ones(2, 4, dtype=torch.long))
