"""A whole tiny checkpoint on disk: random weights, a tokenizer, a chat template. Loaded with ``pytest_plugins``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quarterdeck import CohereConfig, CohereForCausalLM
from tokenizer_support import train_tiny_tokenizer, write_hub_files


def write_checkpoint(folder: Path, **changes: object) -> Path:
    """A model whose greedy texts differ from prompt to prompt, in the files of a public checkpoint.

    ``changes`` are for tokenizer_config.json.
    """
    backend = train_tiny_tokenizer()
    write_hub_files(folder, backend, **changes)
    torch.manual_seed(1)
    model = CohereForCausalLM(
        CohereConfig(
            vocab_size=backend.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.3,
            logit_scale=1.0,
            eos_token_id=backend.token_to_id("<|END_OF_TURN_TOKEN|>"),
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def checkpoint_without_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "checkpoint", chat_template=None)
