"""llama.cpp, for which GGUF files are: it runs what is written here, and what it writes is read here."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from checkpoint_fixtures import write_checkpoint
from gguf_support import made
from quarterdeck import AutoModelForCausalLM, AutoTokenizer, CohereConfig, CohereForCausalLM
from quarterdeck.gguf.container import GGUFFile

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python, the program that GGUF files are for")

PROMPTS = ("Where do emperor penguins live?", "Ahoy! 12 + 7 is", "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi")
# llama.cpp's numbers for how a file is quantized
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18,
}  # fmt: skip
FLOAT32 = 0  # of its caches


@contextmanager
def running(path: Path) -> Iterator[Any]:
    """Read one token at a time: some builds read several in AMX tiles where the system does not allow those."""
    model = llama_cpp.Llama(
        str(path), n_ctx=256, n_batch=1, n_ubatch=1, n_threads=1, logits_all=True, verbose=False,
        type_k=FLOAT32, type_v=FLOAT32,
    )  # fmt: skip
    try:
        yield model
    finally:
        model.close()


def their_logits(model: Any, ids: list[int]) -> Tensor:
    model.reset()
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


def error(path: Path, ids: list[int]) -> float:
    """The largest difference of logits, of the largest logit; activations in full here, as weights have them there."""
    ours = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    if ours.quantization is not None:
        ours.dequantize()
    with torch.no_grad():
        expected = ours(torch.tensor([ids])).logits[0]
    with running(path) as theirs:
        found = their_logits(theirs, ids)
    return float((found - expected).abs().max() / expected.abs().max())


def quantized_by_them(path: Path, target: Path, kind: str) -> Path:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.pure, parameters.nthread = FILE_TYPES[kind], True, 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("midshipman", tmp_path_factory.mktemp("llama") / "m.gguf", "F32")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose rows are whole blocks of 256."""
    folder = write_checkpoint(tmp_path_factory.mktemp("wide") / "checkpoint")
    config = CohereConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.initializer_range = 256, 512, 0.05
    torch.manual_seed(2)
    CohereForCausalLM(config).save_pretrained(folder)
    return made(folder, folder.parent / "wide.gguf", "F32")


def test_logits_are_the_same(embedded: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    for prompt in PROMPTS:
        assert error(embedded, tokenizer(prompt).input_ids) < 1e-4


@pytest.mark.parametrize(("kind", "limit"), [("F16", 5e-3), ("BF16", 2e-2), ("Q8_0", 2e-2), ("Q4_0", 2e-2)])
def test_logits_of_other_types_are_close(tmp_path: Path, kind: str, limit: float) -> None:
    """llama.cpp rounds activations as well, to 16 bits or to 8 in blocks of 32."""
    path = made("midshipman", tmp_path / "x.gguf", kind)
    assert error(path, AutoTokenizer.from_pretrained(path)(PROMPTS[0]).input_ids) < limit


def test_texts_become_the_same_tokens(embedded: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    with running(embedded) as theirs:
        for prompt in (*PROMPTS, "Größe 2024: ½ l\n\n\tdef f(x):  return x", "コウテイペンギンは٣٤٥", " don't  WE'LL "):
            assert theirs.tokenize(prompt.encode(), add_bos=True, special=True) == tokenizer(prompt).input_ids, prompt


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_greedy_texts_are_the_same(tmp_path: Path, kind: str) -> None:
    path = made("midshipman", tmp_path / "x.gguf", kind)
    ours, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    messages = [{"role": "user", "content": PROMPTS[0]}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    expected = ours.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False)[0, len(ids) :].tolist()
    found: list[int] = []
    with running(path) as theirs:
        for token in theirs.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            found.append(token)
            if len(found) == len(expected):
                break
    assert found == expected


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_are_rounded_to_the_same_bytes(embedded: Path, tmp_path: Path, kind: str) -> None:
    ours = made("midshipman", tmp_path / "ours.gguf", kind)
    theirs = quantized_by_them(embedded, tmp_path / "theirs.gguf", kind)
    one, other = GGUFFile(ours), GGUFFile(theirs)
    assert one.metadata == other.metadata
    data, expected = ours.read_bytes(), theirs.read_bytes()
    for name, entry in one.tensors.items():
        same = other.tensors[name]
        assert same.kind == entry.kind
        found = data[entry.offset : entry.offset + entry.nbytes]
        assert found == expected[same.offset : same.offset + same.nbytes], name


@pytest.mark.parametrize("kind", list(FILE_TYPES))
def test_what_it_quantizes_runs_here(wide: Path, tmp_path: Path, kind: str) -> None:
    path = quantized_by_them(wide, tmp_path / "x.gguf", kind)
    assert kind in {entry.kind.name for entry in GGUFFile(path).tensors.values()}
    assert error(path, [5, 9, 33, 2, 40, 12, 77]) < 5e-2  # blocks read wrongly give 1
