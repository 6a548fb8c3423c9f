"""A model, assistants that are right more or less often, and a count of runs, for the tests of speculation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Pair, make_ours, make_pair, random_ids
from quarterdeck import CohereForCausalLM

FIELDS: dict[str, Any] = {"max_position_embeddings": 128, "num_key_value_heads": 2}
P = 9
SOURCES = ("twin", "near", "far", "lookup")

Assistants = dict[str, CohereForCausalLM]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair("sdpa", **FIELDS)


@pytest.fixture(scope="module")
def assistants(pair: Pair) -> Assistants:
    """One that is always right, one that is right now and then, and one that hardly ever is."""
    twin, near = make_ours(**FIELDS), make_ours(**FIELDS)
    twin.load_state_dict(pair.ours.state_dict())
    near.load_state_dict(pair.ours.state_dict())
    generator = torch.Generator().manual_seed(3)
    for parameter in near.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.03
    return {"twin": twin, "near": near, "far": make_ours(seed=5, num_hidden_layers=1, max_position_embeddings=128)}


def guessing(source: str, assistants: Assistants) -> dict[str, Any]:
    """The arguments of `generate` that ask for guesses from that source."""
    if source == "lookup":
        return {"prompt_lookup_num_tokens": 4}
    return {"assistant_model": assistants[source], "num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}


def prompt() -> Tensor:
    """[1, P] ids with something to look up."""
    ids = random_ids(1, P)
    ids[0, 5:7] = ids[0, :2]
    return ids


class Letters:
    """A tokenizer that writes a letter or two per token."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        return "".join("abcdefghij"[token % 10] + ("kl"[token % 2] if token > 50 else "") for token in token_ids)


class Counted:
    """How often the model runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.runs = 0
        self._handle = model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()
