"""GenerationConfig: the table of options against transformers' list, values, files."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from quarterdeck.config import CohereConfig
from quarterdeck.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    InputError,
    UnsupportedOptionError,
)
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.options import CALL_ARGUMENTS, IMPLEMENTED, OPTIONS
from quarterdeck.generation.validation import RULES
from quarterdeck.model import CohereForCausalLM

METADATA = {"_from_model_config", "_commit_hash", "transformers_version", "_original_object_hash"}
OURS = {"logit_bias"}
REFUSED = {name: option for name, option in OPTIONS.items() if option.reason is not None}

ANOTHER_VALUE: dict[str, Any] = {
    "force_words_ids": [[3]],
    "constraints": [object()],
    "return_legacy_cache": True,
    "token_healing": True,
    "encoder_repetition_penalty": 1.5,
    "encoder_no_repeat_ngram_size": 2,
    "decoder_start_token_id": 1,
    "is_assistant": True,
    "assistant_early_exit": 2,
    "assistant_lookbehind": 5,
    "target_lookbehind": 5,
    "low_memory": True,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    config = CohereConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=5,
        eos_token_id=7,
    )
    return CohereForCausalLM(config).eval()


# ---------------------------------------------------------------------------------- the table


def test_every_option_of_transformers_is_known_with_its_default(transformers: ModuleType) -> None:
    theirs = {key: value for key, value in vars(transformers.GenerationConfig()).items() if key not in METADATA}
    assert set(theirs) == set(OPTIONS) - OURS
    assert {name: OPTIONS[name].default for name in theirs} == theirs


def test_every_argument_of_their_generate_is_known(transformers: ModuleType) -> None:
    names = set(inspect.signature(transformers.GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert names - {"generation_config"} <= set(CALL_ARGUMENTS) | set(
        inspect.signature(CohereForCausalLM.generate).parameters
    )


def test_every_option_is_either_implemented_or_refused(model: CohereForCausalLM) -> None:
    assert set(ANOTHER_VALUE) == set(REFUSED)
    assert set(RULES) == set(IMPLEMENTED)
    assert set(GenerationConfig.__annotations__) - {"SAMPLING_ONLY", "BEAMS_ONLY", "DICT_ONLY", "extra"} == set(
        IMPLEMENTED
    )


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_there_is_refused_by_name(model: CohereForCausalLM, name: str) -> None:
    value = ANOTHER_VALUE[name]
    reason = REFUSED[name].reason
    assert reason is not None
    ids = torch.tensor([[5, 6]])
    with pytest.raises(UnsupportedOptionError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert reason in str(caught.value)
    with pytest.raises(UnsupportedOptionError, match=name):
        GenerationConfig().update(**{name: value})
    with pytest.raises(UnsupportedOptionError, match=name):
        model.generate(ids, **{name: value})
    from_file = GenerationConfig.from_dict({name: value})  # a checkpoint's file may hold it ...
    with pytest.raises(UnsupportedOptionError, match=name):
        model.generate(ids, from_file)  # ... but it is not followed silently
    default = OPTIONS[name].default
    assert model.generate(ids, from_file, **{name: default}, max_new_tokens=1).shape == (1, 3)


@pytest.mark.parametrize("name", sorted(name for name, reason in CALL_ARGUMENTS.items() if reason))
def test_arguments_that_are_not_there_are_refused_by_name(model: CohereForCausalLM, name: str) -> None:
    ids = torch.tensor([[5, 6]])
    with pytest.raises(UnsupportedOptionError, match=name):
        model.generate(ids, **{name: object()})
    assert model.generate(ids, **{name: None}, max_new_tokens=1).shape == (1, 3)


@pytest.mark.parametrize("name", ["temprature", "token_type_ids", "cache_position", "labels"])
def test_unknown_arguments_are_refused_by_name(model: CohereForCausalLM, name: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=name):
        model.generate(torch.tensor([[5, 6]]), **{name: 1})
    with pytest.raises(UnsupportedOptionError, match=name):
        GenerationConfig(**{name: 1})
    assert GenerationConfig().update(**{name: 1, "top_k": 3}) == {name: 1}


def test_a_misspelt_option_is_answered_with_the_right_one() -> None:
    with pytest.raises(UnsupportedOptionError, match="Did you mean 'temperature'"):
        GenerationConfig(temprature=1.0)
    with pytest.raises(UnsupportedOptionError, match=r"pass it to generate\(\)"):
        GenerationConfig(streamer=1)


@pytest.mark.parametrize("kind", ["sliding_window", "hybrid", "offloaded_hybrid", "paged", "nonsense"])
def test_other_caches_are_refused_by_name(model: CohereForCausalLM, kind: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=f"{kind}.*'dynamic', 'dynamic_full', 'static'"):
        model.generate(torch.tensor([[5]]), cache_implementation=kind)
    assert GenerationConfig.from_dict({"cache_implementation": kind}).cache_implementation == kind


# ---------------------------------------------------------------------------------- values

WRONG: list[dict[str, Any]] = [
    {"max_length": 0},
    {"max_length": 5.5},
    {"max_new_tokens": 0},
    {"max_new_tokens": -3},
    {"max_new_tokens": True},
    {"min_length": -1},
    {"min_new_tokens": -1},
    {"max_time": 0},
    {"stop_strings": ""},
    {"stop_strings": []},
    {"stop_strings": [3]},
    {"do_sample": "yes"},
    {"num_return_sequences": 0},
    {"num_return_sequences": 2},
    {"prefill_chunk_size": 0},
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": 0.0, "do_sample": True},
    {"top_k": -1},
    {"top_k": 2.5},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"top_p": "0.9"},
    {"min_p": -0.1},
    {"min_p": 1.1},
    {"typical_p": 2.0},
    {"typical_p": 0},
    {"epsilon_cutoff": 1.0},
    {"eta_cutoff": -0.5},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": -2.0},
    {"no_repeat_ngram_size": -1},
    {"bad_words_ids": []},
    {"bad_words_ids": [3]},
    {"bad_words_ids": [[]]},
    {"bad_words_ids": [[-3]]},
    {"sequence_bias": {3: 1.0}},
    {"sequence_bias": {(3,): "x"}},
    {"sequence_bias": [[3, 1.0]]},
    {"sequence_bias": {}},
    {"logit_bias": {"x": 1.0}},
    {"logit_bias": [3]},
    {"suppress_tokens": 3},
    {"begin_suppress_tokens": [-1]},
    {"forced_bos_token_id": -1},
    {"forced_eos_token_id": []},
    {"exponential_decay_length_penalty": (1,)},
    {"exponential_decay_length_penalty": (1, -2.0)},
    {"return_dict_in_generate": 1},
    {"pad_token_id": -1},
    {"eos_token_id": []},
    {"eos_token_id": "x"},
    {"cache_implementation": 3},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_values_that_cannot_be_right_are_refused(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(InputError, match=name):
        GenerationConfig(**options)
    config = GenerationConfig(top_k=7)
    with pytest.raises(InputError, match=name):
        config.update(**options, top_k=9) if name != "top_k" else config.update(**options)
    assert config == GenerationConfig(top_k=7)  # nothing was changed
    if name != "cache_implementation":
        with pytest.raises(InputError, match=r"generation_config\.json"):
            GenerationConfig.from_dict(options)


def test_tensors_and_arrays_become_plain_values() -> None:
    config = GenerationConfig(
        eos_token_id=torch.tensor([3, 4]), pad_token_id=np.int64(2), bad_words_ids=np.array([[1, 2]])
    )
    assert (config.eos_token_id, config.pad_token_id, config.bad_words_ids) == ([3, 4], 2, [[1, 2]])


def test_values_are_copied() -> None:
    words = [[1, 2]]
    config = GenerationConfig(bad_words_ids=words)
    words[0].append(3)
    assert config.bad_words_ids == [[1, 2]]


def test_what_has_no_effect_is_told() -> None:
    config = GenerationConfig(temperature=0.5, top_k=3, output_scores=True, use_cache=False)
    assert set(config.without_effect()) == {"temperature", "top_k", "output_scores"}
    assert GenerationConfig(temperature=0.5, do_sample=True).without_effect() == {}


def test_generate_logs_what_has_no_effect(model: CohereForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    model.generate(torch.tensor([[5]]), max_new_tokens=1, temperature=0.5)
    assert "temperature=0.5 has no effect: it needs do_sample=True" in caplog.text


# ---------------------------------------------------------------------------------- files


def test_round_trip(tmp_path: Path) -> None:
    config = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        eos_token_id=[3, 4],
        sequence_bias={(1, 2): -3.0},
        logit_bias={7: 2.5},
        stop_strings=["x"],
        exponential_decay_length_penalty=(3, 1.5),
    )
    config.save_pretrained(tmp_path / "new")
    again = GenerationConfig.from_pretrained(tmp_path / "new")
    assert again.logit_bias == {7: 2.5}
    assert again.sequence_bias == [[[1, 2], -3.0]]
    assert again.to_json_string() == config.to_json_string()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["generation_config.json"]


def test_unknown_keys_and_options_of_a_file_are_kept(tmp_path: Path) -> None:
    content = {
        "_from_model_config": True,
        "bos_token_id": 5,
        "eos_token_id": 255001,
        "pad_token_id": 0,
        "transformers_version": "4.38.2",
        "something_new": [1, {"a": 2}],
        "num_beams": 4,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    config = GenerationConfig.from_pretrained(tmp_path, max_new_tokens=9)
    assert config.max_new_tokens == 9
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == content | {"max_new_tokens": 9}


def test_files_go_both_ways_between_us_and_transformers(transformers: ModuleType, tmp_path: Path) -> None:
    fields = {"do_sample": True, "temperature": 0.3, "top_p": 0.75, "eos_token_id": [3, 4], "max_new_tokens": 7}
    transformers.GenerationConfig(**fields).save_pretrained(tmp_path / "theirs")
    ours = GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert {name: getattr(ours, name) for name in fields} == fields
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(theirs, name) for name in fields} == fields


def test_broken_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        GenerationConfig.from_pretrained(tmp_path)
    for text in ("{", "[1]"):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(CheckpointCorruptError, match=r"generation_config\.json"):
            GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "other.json").write_text('{"top_k": 5}')
    assert GenerationConfig.from_pretrained(tmp_path, "other.json").top_k == 5
    with pytest.raises(UnsupportedOptionError, match="zork"):
        GenerationConfig.from_pretrained(tmp_path, "other.json", zork=1)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match=r"mine' is a file; give a folder"):
        GenerationConfig().save_pretrained(tmp_path / "mine")


def test_from_a_model_configuration() -> None:
    config = GenerationConfig.from_model_config(CohereConfig(eos_token_id=9, top_k=3, use_cache=False))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 9, 0)
    assert (config.top_k, config.use_cache, config.return_dict_in_generate) == (3, False, False)
    assert GenerationConfig.from_model_config(CohereConfig(output_attentions=True)).return_dict_in_generate
    none = GenerationConfig.from_model_config(CohereConfig(pad_token_id=-1, bos_token_id=-1, eos_token_id=[-1]))
    assert (none.bos_token_id, none.eos_token_id, none.pad_token_id) == (None, None, None)


def test_temperature_zero_asks_for_greedy_whatever_the_model_prefers() -> None:
    model = GenerationConfig(do_sample=True, temperature=0.3, top_k=5)
    merged = GenerationConfig(temperature=0.0).with_defaults_of(model)
    assert (merged.do_sample, merged.top_k) == (False, 5)
    assert GenerationConfig(top_p=0.5).with_defaults_of(model).temperature == 0.3


def test_equality_copy_and_text() -> None:
    config = GenerationConfig(top_k=3)
    assert copy.deepcopy(config) == config != GenerationConfig()
    assert config != "GenerationConfig(top_k=3)" == repr(config)
    assert config.to_dict().keys() == OPTIONS.keys()


def test_defaults_of_old_checkpoints_stay_out_of_a_callers_config(model: CohereForCausalLM) -> None:
    saved = model.generation_config
    fields = {"bos_token_id": 5, "eos_token_id": 7, "pad_token_id": 0, "max_new_tokens": 6}
    ids = torch.tensor([[5, 6]])
    options = GenerationConfig(min_new_tokens=1, suppress_tokens=[7])
    try:
        model.generation_config = GenerationConfig.from_dict(fields | {"transformers_version": "4.38.2"})
        assert model.generate(ids).shape[1] <= 8
        assert model.generate(ids, options).shape[1] == 22
        assert model.generate(ids, options, use_model_defaults=True).shape[1] == 8
        model.generation_config = GenerationConfig.from_dict(fields | {"transformers_version": "4.50.0.dev0"})
        assert model.generate(ids, options).shape[1] == 8
        assert model.generate(ids, options, use_model_defaults=False).shape[1] == 22
    finally:
        model.generation_config = saved
