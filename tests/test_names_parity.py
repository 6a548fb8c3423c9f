"""Names of docs/names.md that no other test is about: the same values as in transformers, or what is said there."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from quarterdeck import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    CohereModel,
    CohereTokenizerFast,
    pipeline,
)
from quarterdeck.errors import UnsupportedOptionError
from quarterdeck.pipelines import factory
from quarterdeck.pipelines.options import ReturnType

pytest_plugins = ["tokenizer_fixtures", "checkpoint_fixtures"]

Pair = tuple[CohereTokenizerFast, Any]
TEXTS = ["Ahoy , sailor ! Don 't panic .", "Plants create energy", "ペンギン é", ""]


# ── tokenizers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    [
        *("is_fast", "slow_tokenizer_class", "model_input_names", "pad_token_type_id"),
        *("max_len_single_sentence", "max_len_sentences_pair", "vocab_size", "truncation_side", "unk_token"),
        *("bos_token", "eos_token", "special_tokens_map_extended", "all_special_tokens_extended", "vocab_files_names"),
        *("added_tokens_encoder", "added_tokens_decoder", "decoder", "special_tokens_map", "all_special_ids"),
        "all_special_tokens",
    ],
)
def test_what_a_tokenizer_says_of_itself(tiny_pair: Pair, name: str) -> None:
    ours, theirs = (getattr(tokenizer, name) for tokenizer in tiny_pair)
    assert repr(ours) == repr(theirs)


def test_the_tokenizer_behind(tiny_pair: Pair) -> None:
    assert list(tiny_pair[0].SPECIAL_TOKENS_ATTRIBUTES) == list(tiny_pair[1].SPECIAL_TOKENS_ATTRIBUTES)
    ours, theirs = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in tiny_pair)
    calls = {"padding": None, "truncation": None}  # the peer's backend keeps those of its latest call
    assert ours | calls == theirs | calls


def test_older_names_of_calls(tiny_pair: Pair) -> None:
    ours, theirs = tiny_pair
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text) == ours.encode_plus(text)["input_ids"]
        assert ours.encode_plus(text, text_pair="b").data == theirs.encode_plus(text, text_pair="b").data
        assert ours(text, text_pair="b").data == theirs(text, text_pair="b").data
        assert ours.clean_up_tokenization(text) == theirs.clean_up_tokenization(text)
        ids = ours(text)["input_ids"]
        tokens = ours.convert_ids_to_tokens(ids)
        assert tokens == theirs.convert_ids_to_tokens(ids)
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    for options in ({}, {"return_attention_mask": False}):
        assert ours.batch_encode_plus(TEXTS, **options).data == theirs.batch_encode_plus(TEXTS, **options).data
        assert ours(TEXTS, **options).data == theirs(TEXTS, **options).data
    targets = {"text_target": "a b", "text_pair_target": "c"}
    assert ours("x", **targets).data == theirs("x", **targets).data
    chat = [{"role": "user", "content": "Ahoy"}]
    assert ours.apply_chat_template(conversation=chat) == theirs.apply_chat_template(conversation=chat)


def test_added_words_and_tokens_around_texts(
    tiny_folder: Path, tiny: CohereTokenizerFast, transformers: ModuleType
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    for tokenizer in (tiny, theirs):
        tokenizer.add_tokens(["zebra", "<x>"])
        tokenizer.add_eos_token = True
        tokenizer.bos_token = "<CLS>"
        tokenizer.update_post_processor()
    assert tiny.get_added_vocab() == theirs.get_added_vocab()
    assert "zebra" in tiny.get_added_vocab()
    assert tiny("a zebra")["input_ids"] == theirs("a zebra")["input_ids"]
    assert tiny("a")["input_ids"][0] == tiny.convert_tokens_to_ids("<CLS>")


def test_files_and_settings_of_a_tokenizer(tiny: CohereTokenizerFast, tiny_folder: Path, tmp_path: Path) -> None:
    vocab_file, merges_file = tiny.save_vocabulary(str(tmp_path))
    made = CohereTokenizerFast(
        vocab_file=vocab_file, merges_file=merges_file, added_tokens_decoder=tiny.added_tokens_decoder
    )
    assert made.tokenize(TEXTS[1]) == tiny.tokenize(TEXTS[1])
    kept = CohereTokenizerFast.from_pretrained(tiny_folder, use_default_system_prompt=True)
    kept.save_pretrained(tmp_path / "kept")
    assert json.loads((tmp_path / "kept/tokenizer_config.json").read_text())["use_default_system_prompt"] is True


# ── configurations and models ─────────────────────────────────────────────────────────────────────────────────────────


def test_fields_that_no_cohere_model_reads_are_kept() -> None:
    fields = {
        "chunk_size_feed_forward": 2,
        "is_encoder_decoder": False,
        "problem_type": "x",
        "transformers_version": "4",
    }
    config = CohereConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields
    written = json.loads(config.to_json_string())
    assert {name: written[name] for name in fields} == fields


def test_names_of_configurations(transformers: ModuleType) -> None:
    ours, theirs = CohereConfig, transformers.CohereConfig
    assert ours.model_type == theirs.model_type
    assert list(ours.keys_to_ignore_at_inference) == theirs.keys_to_ignore_at_inference
    values = {"num_labels": 3, "name_or_path": "a/b"}
    assert {n: getattr(ours.from_dict(values), n) for n in values} == {
        n: getattr(theirs.from_dict(dict(values)), n) for n in values
    }
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    assert {n: getattr(ours(**labels), n) for n in labels} == {n: getattr(theirs(**labels), n) for n in labels}


def test_names_of_models(checkpoint: Path, tmp_path: Path, transformers: ModuleType) -> None:
    for ours, theirs in (
        (CohereForCausalLM, transformers.CohereForCausalLM),
        (CohereModel, transformers.CohereModel),
    ):
        assert ours.config_class is CohereConfig
        assert ours.config_class.__name__ == theirs.config_class.__name__
        assert ours.base_model_prefix == theirs.base_model_prefix
        assert ours.main_input_name == theirs.main_input_name
        assert ours.can_generate() == theirs.can_generate()
        assert ours.supports_gradient_checkpointing == theirs.supports_gradient_checkpointing
    ours = CohereForCausalLM.from_pretrained(pretrained_model_name_or_path=checkpoint)
    theirs = transformers.CohereForCausalLM.from_pretrained(pretrained_model_name_or_path=checkpoint)
    ours.save_pretrained(save_directory=tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.base_model is again.model
    assert (ours.device, ours.dtype) == (theirs.device, theirs.dtype) == (again.device, again.dtype)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(ours.forward(input_ids=ids).logits, again(ids).logits)
    options = {"inputs": ids, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(ours.generate(**options), theirs.generate(**options))
    ours.lm_head.weight = torch.nn.Parameter(torch.zeros_like(ours.lm_head.weight))
    ours.tie_weights()
    assert ours.lm_head.weight is ours.model.embed_tokens.weight


def test_fresh_weights_at_the_end_of_a_constructor(checkpoint: Path) -> None:
    model = CohereModel(CohereConfig.from_pretrained(checkpoint))
    torch.nn.init.zeros_(model.embed_tokens.weight)
    model.post_init()
    assert model.embed_tokens.weight.std() > 0


@pytest.mark.parametrize(
    "option",
    [
        *({"key_mapping": {"a": "b"}}, {"proxies": {"http": "x"}}, {"from_flax": True}, {"from_tf": True}),
        *({"variant": "fp16"}, {"tp_plan": "auto"}, {"tp_size": 2}, {"device_mesh": "x"}),
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_of_loading_that_are_refused(checkpoint: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOptionError, match=next(iter(option))):
        CohereForCausalLM.from_pretrained(checkpoint, **option)


# ── pipelines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pipeline_loads_what_it_is_told_to(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def load(name: object, **options: Any) -> CohereForCausalLM:
        given.update(options)
        return CohereForCausalLM.from_pretrained(name, **options)

    monkeypatch.setattr(factory.AutoModelForCausalLM, "from_pretrained", load)
    config = CohereConfig.from_pretrained(checkpoint)
    config.logit_scale = 0.5
    made = pipeline(model=checkpoint, config=config, revision="main", token=False, use_fast=True, framework="pt")
    assert (given["revision"], given["token"]) == ("main", False)
    assert made.model.config.logit_scale == 0.5


def test_kinds_of_records(checkpoint: Path, transformers: ModuleType) -> None:
    ours = pipeline(model=checkpoint, device="cpu")
    theirs = transformers.pipeline("text-generation", model=str(checkpoint), device="cpu")
    kinds = transformers.pipelines.text_generation.ReturnType
    for kind in ReturnType:
        options = {"do_sample": False, "max_new_tokens": 4}
        assert ours("Hello", return_type=kind, **options) == theirs("Hello", return_type=kinds[kind.name], **options)
