"""Tokenizers that went through a GGUF file: the same ids, tokens, options and templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from quarterdeck import AutoTokenizer, CohereTokenizerFast
from quarterdeck.errors import CheckpointCorruptError, TokenizerError, UnsupportedOptionError
from quarterdeck.gguf.container import GGUFFile, write_container
from quarterdeck.gguf.vocabulary import OWN_OPTIONS, tokenizer_arguments
from quarterdeck.weights.gguf_export import tokenizer_metadata
from tokenizer_support import TEXTS

pytest_plugins = ["tokenizer_fixtures"]

GENERAL = {"general.architecture": "command-r"}


def through_a_file(tokenizer: CohereTokenizerFast, path: Path, size: int, *, own: bool = True) -> CohereTokenizerFast:
    """Written and read; ``own`` is whether with what only this package writes."""
    metadata = tokenizer_metadata(tokenizer, size)
    if not own:
        del metadata[OWN_OPTIONS]
    with path.open("wb") as file:
        write_container(file, GENERAL | metadata, [])
    return AutoTokenizer.from_pretrained(path)


def check_same(one: CohereTokenizerFast, other: CohereTokenizerFast) -> None:
    assert one.get_vocab() == other.get_vocab()
    assert one.vocab_size == other.vocab_size
    for text in TEXTS:
        ids = one(text).input_ids
        assert other(text).input_ids == ids, text
        assert one.decode(ids) == other.decode(ids)
        assert one.decode(ids, skip_special_tokens=True) == other.decode(ids, skip_special_tokens=True)
    assert one(TEXTS[0], TEXTS[1]).input_ids == other(TEXTS[0], TEXTS[1]).input_ids
    assert one.special_tokens_map == other.special_tokens_map
    assert one.chat_template == other.chat_template
    found, expected = (
        {index: token.__getstate__() for index, token in each.added_tokens_decoder.items()} for each in (other, one)
    )
    assert found == expected


def saved(tokenizer: CohereTokenizerFast, folder: Path) -> dict[str, Any]:
    tokenizer.save_pretrained(folder)
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_the_embedded_tokenizer_comes_back(tmp_path: Path) -> None:
    original = AutoTokenizer.from_pretrained("midshipman")
    found = through_a_file(original, tmp_path / "x.gguf", 8192)
    check_same(original, found)
    assert saved(original, tmp_path / "a") == saved(found, tmp_path / "b")


def test_unused_rows_at_the_end_are_no_tokens(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    found = through_a_file(tiny, tmp_path / "x.gguf", len(tiny) + 9)
    assert len(found) == len(tiny)
    tokens = GGUFFile(tmp_path / "x.gguf").metadata["tokenizer.ggml.tokens"]
    assert tokens[len(tiny) :] == [f"[PAD{index}]" for index in range(len(tiny), len(tiny) + 9)]


def test_a_file_with_only_the_common_keys_gives_the_same_ids(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    check_same(tiny, through_a_file(tiny, tmp_path / "x.gguf", len(tiny) + 3, own=False))


def test_the_real_vocabulary(real: CohereTokenizerFast, tmp_path: Path) -> None:
    found = through_a_file(real, tmp_path / "x.gguf", 256000)
    assert (len(found), found.vocab_size) == (255029, 255000)
    check_same(real, found)
    assert found("Hello this is a test").input_ids == [5, 28339, 2075, 1801, 1671, 3282]


def test_named_templates_are_kept(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    tiny.chat_template = {"default": "a", "rag": "b{{ x }}", "tool_use": "c"}
    assert through_a_file(tiny, tmp_path / "x.gguf", len(tiny)).chat_template == tiny.chat_template
    keys = GGUFFile(tmp_path / "x.gguf").metadata
    assert (keys["tokenizer.chat_template"], keys["tokenizer.chat_templates"]) == ("a", ["rag", "tool_use"])
    assert keys["tokenizer.chat_template.rag"] == "b{{ x }}"


def test_the_options_of_tokens_and_tokenizer_are_kept(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    tiny.padding_side, tiny.model_max_length, tiny.add_eos_token = "right", 77, True
    found = through_a_file(tiny, tmp_path / "x.gguf", len(tiny))
    assert (found.padding_side, found.model_max_length, found.add_eos_token) == ("right", 77, True)
    assert found("Ahoy").input_ids == tiny("Ahoy").input_ids
    left = AutoTokenizer.from_pretrained(tmp_path / "x.gguf", padding_side="left", chat_template="t")
    assert (left.padding_side, left.chat_template) == ("left", "t")
    with pytest.raises(UnsupportedOptionError, match="no option paddingside"):
        AutoTokenizer.from_pretrained(tmp_path / "x.gguf", paddingside="left")


def test_types_of_tokens_count_before_our_own_text(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    through_a_file(tiny, tmp_path / "x.gguf", len(tiny))
    file = GGUFFile(tmp_path / "x.gguf")
    index = tiny.convert_tokens_to_ids("<|USER_TOKEN|>")
    types = file.metadata["tokenizer.ggml.token_type"]
    before = types[index]
    types[index] = 3 if before == 4 else 4
    assert tokenizer_arguments(file)["added_tokens_decoder"][index].special == (before == 4)


def test_tokenizers_of_another_kind_are_refused(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    backend = Tokenizer.from_str(tiny.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match=r"pre_tokenizer is \{'type': 'Whitespace'\}"):
        tokenizer_metadata(CohereTokenizerFast(tokenizer_object=backend), len(tiny))
    contents = json.loads(tiny.backend_tokenizer.to_str())
    contents["model"]["byte_fallback"] = True
    with pytest.raises(TokenizerError, match="byte_fallback"):
        tokenizer_metadata(CohereTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(contents))), len(tiny))
    with pytest.raises(TokenizerError, match="do not fit"):
        tokenizer_metadata(tiny, len(tiny) - 1)


def test_files_of_another_kind_are_refused(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    good = GENERAL | tokenizer_metadata(tiny, len(tiny))
    for changes, error, message in (
        ({"tokenizer.ggml.pre": "llama-bpe"}, TokenizerError, "kind 'llama-bpe'"),
        ({"tokenizer.ggml.model": "llama"}, TokenizerError, "model 'llama'"),
        ({"tokenizer.ggml.token_type": [1, 1]}, CheckpointCorruptError, "the types of 2"),
        ({"tokenizer.ggml.merges": ["no such"]}, TokenizerError, "vocab and merges do not fit"),
        ({OWN_OPTIONS: "[1]"}, CheckpointCorruptError, "are a list, not an object"),
    ):
        with (tmp_path / "x.gguf").open("wb") as file:
            write_container(file, good | changes, [])
        with pytest.raises(error, match=message):
            AutoTokenizer.from_pretrained(tmp_path / "x.gguf")
