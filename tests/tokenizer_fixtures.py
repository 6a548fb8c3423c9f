"""Fixtures of the tokenizer tests, loaded by them with ``pytest_plugins``."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

from quarterdeck.tokenizer import CohereTokenizerFast
from tokenizer_support import train_tiny_tokenizer, write_hub_files


@pytest.fixture(scope="session")
def tiny_backend() -> Tokenizer:
    return train_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tiny_backend: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub_files(tmp_path_factory.mktemp("tiny") / "checkpoint", tiny_backend)


@pytest.fixture
def tiny(tiny_folder: Path) -> CohereTokenizerFast:
    """A new tokenizer for each test, since tests change it."""
    return CohereTokenizerFast.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def real_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real vocabulary of 255,000 tokens, with the configuration of the public checkpoints."""
    folder = tmp_path_factory.mktemp("real") / "checkpoint"
    folder.mkdir()
    with (
        gzip.open(shared_data / "command-r-tokenizer.json.gz") as packed,
        (folder / "tokenizer.json").open("wb") as file,
    ):
        shutil.copyfileobj(packed, file)
    config_of = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return write_hub_files(folder, config_of)


@pytest.fixture(scope="session")
def real(real_folder: Path) -> CohereTokenizerFast:
    return CohereTokenizerFast.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="the peer to compare with")


@pytest.fixture(scope="session")
def tiny_pair(tiny_folder: Path, transformers: ModuleType) -> tuple[CohereTokenizerFast, Any]:
    """Ours and the peer's, from the same files; not to be changed."""
    return CohereTokenizerFast.from_pretrained(tiny_folder), transformers.CohereTokenizerFast.from_pretrained(
        tiny_folder
    )


@pytest.fixture(scope="session")
def real_pair(
    real: CohereTokenizerFast, real_folder: Path, transformers: ModuleType
) -> tuple[CohereTokenizerFast, Any]:
    """The same with the real vocabulary."""
    return real, transformers.CohereTokenizerFast.from_pretrained(real_folder)


@pytest.fixture(params=["tiny", "real"])
def pair(request: pytest.FixtureRequest) -> tuple[CohereTokenizerFast, Any]:
    """Ours and the peer's with the tiny, then with the real vocabulary."""
    return request.getfixturevalue(f"{request.param}_pair")
