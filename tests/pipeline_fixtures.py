"""Two pipelines over one tiny checkpoint, ours and that of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quarterdeck import AutoModelForCausalLM, AutoTokenizer, CohereForCausalLM, pipeline
from quarterdeck.pipelines import TextGenerationPipeline

pytest_plugins = ["checkpoint_fixtures"]


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="the peer to compare with")
    return transformers.pipeline("text-generation", model=str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> TextGenerationPipeline:
    return pipeline("text-generation", model=checkpoint, device="cpu")


@pytest.fixture
def parts(checkpoint: Path) -> tuple[CohereForCausalLM, Any]:
    """A model and a tokenizer of one's own, to be changed."""
    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
