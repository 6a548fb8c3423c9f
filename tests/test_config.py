"""CohereConfig: the defaults of transformers, every spelling of config.json, the published checkpoints."""

from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from parity import ROPES, SWITCHES, TINY, transformers
from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError, UnsupportedOptionError

PUBLISHED = (
    "c4ai-command-r-v01",
    "c4ai-command-r-plus",
    "c4ai-command-r-08-2024",
    "c4ai-command-r-plus-08-2024",
    "aya-23-8B",
    "aya-23-35B",
    "aya-expanse-8b",
    "aya-expanse-32b",
)
NO_FIELDS = {"self", "kwargs"}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
DOCUMENTED = [name for name in inspect.signature(transformers.CohereConfig).parameters if name not in NO_FIELDS]


def test_every_documented_parameter_has_its_default() -> None:
    ours, theirs = CohereConfig(), transformers.CohereConfig()
    assert len(DOCUMENTED) >= 21
    for name in DOCUMENTED:
        assert getattr(ours, name) == getattr(theirs, name), name
        assert name in inspect.signature(CohereConfig).parameters, name
    assert ours.model_type == theirs.model_type
    assert ours.keys_to_ignore_at_inference == theirs.keys_to_ignore_at_inference


def test_positional_order_is_that_of_transformers() -> None:
    parameters = inspect.signature(CohereConfig).parameters.values()
    assert [one.name for one in parameters if one.kind == one.POSITIONAL_OR_KEYWORD] == DOCUMENTED


def test_common_fields_have_their_defaults() -> None:
    ours, theirs = CohereConfig(), transformers.CohereConfig()
    for name in (
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_return_dict",
        "architectures",
        "dtype",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_every_parameter_is_kept_set_and_written() -> None:
    values: dict[str, Any] = {
        **TINY,
        "num_key_value_heads": 2,
        "hidden_act": "gelu",
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-3,
        "use_cache": False,
        "tie_word_embeddings": False,
        "rope_theta": 123.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "attention_bias": True,
        "attention_dropout": 0.25,
        "use_qk_norm": True,
    }
    assert set(values) == set(DOCUMENTED), "a parameter is missing from this test"
    config = CohereConfig(**values)
    for name, value in values.items():
        assert getattr(config, name) == value
        assert config.to_dict()[name] == value
        changed = CohereConfig()
        setattr(changed, name, value)
        assert getattr(changed, name) == value


# -- derived values ------------------------------------------------------------------------------------


def test_head_dim_and_groups() -> None:
    assert CohereConfig().head_dim == 128
    assert CohereConfig().num_key_value_heads == 64
    assert "head_dim" not in CohereConfig().to_dict()
    config = CohereConfig(**TINY, head_dim=16)
    assert config.head_dim == config.to_dict()["head_dim"] == 16
    config.head_dim = None
    assert config.head_dim == 8


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 8192),
        ({"model_max_length": 131072}, 131072),
        ({"model_max_length": 4096}, 8192),
        ({"model_max_length": None}, 8192),
        ({"rope_scaling": {"rope_type": "default"}}, 8192),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 32768),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 16384),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "model_max_length": 131072}, 131072),
        ({"model_max_length": 131072.0}, 131072),
        ({"model_max_length": 1e30}, 8192),
        ({"model_max_length": int(1e30)}, 8192),
        ({"rope_scaling": LONGROPE}, 32768),
        ({"rope_scaling": LONGROPE | {"factor": None, "attention_factor": 1.2}}, 8192),
        ({"rope_scaling": LONGROPE, "original_max_position_embeddings": 2048}, 8192),
    ],
)
def test_context_length(fields: dict[str, Any], expected: int) -> None:
    assert CohereConfig(**fields).context_length == expected


def test_eos_ids() -> None:
    assert CohereConfig().eos_token_ids == (255001,)
    assert CohereConfig(eos_token_id=[7, 8]).eos_token_ids == (7, 8)
    assert CohereConfig(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_both_names_of_the_type(name: str, value: str | torch.dtype) -> None:
    config = CohereConfig(**{name: value})
    assert config.dtype == config.torch_dtype == torch.bfloat16
    assert config.to_dict()["dtype"] == "bfloat16"
    assert "torch_dtype" not in config.to_dict()
    config.torch_dtype = "float16"
    assert config.dtype == torch.float16
    assert CohereConfig.from_dict(config.to_dict(), torch_dtype="float32").dtype == torch.float32


# -- files ---------------------------------------------------------------------------------------------

CASES = {"defaults": {}} | {name: TINY | fields for name, fields in (SWITCHES | ROPES).items()}


@pytest.mark.parametrize("case", CASES)
def test_written_by_us_read_by_transformers_and_back(tmp_path: Path, case: str) -> None:
    ours = CohereConfig(**CASES[case], dtype="bfloat16")
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.CohereConfig.from_pretrained(tmp_path / "ours")
    for name in [*DOCUMENTED, "dtype"]:
        assert getattr(theirs, name) == getattr(ours, name), name
    assert getattr(theirs, "head_dim", ours.head_dim) == ours.head_dim
    theirs.save_pretrained(tmp_path / "theirs")
    back = CohereConfig.from_pretrained(tmp_path / "theirs")
    for name in [*DOCUMENTED, "dtype", "head_dim", "context_length"]:
        assert getattr(back, name) == getattr(ours, name), name
    again = CohereConfig.from_pretrained(tmp_path / "ours")
    assert again == ours
    assert again.to_json_string() == ours.to_json_string()


def test_old_spellings_of_a_file(tmp_path: Path) -> None:
    written = {
        **TINY,
        "model_type": "cohere",
        "torch_dtype": "float16",
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "_name_or_path": "somewhere/else",
        "num_key_value_heads": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = CohereConfig.from_pretrained(tmp_path)
    assert config.dtype == torch.float16
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert config.num_key_value_heads == 4
    assert config.name_or_path == str(tmp_path)


def test_unknown_keys_are_kept_and_written_back(tmp_path: Path) -> None:
    unknown = {
        "pretraining_tp": 1,
        "auto_map": {"AutoConfig": "configuration_cohere.CohereConfig"},
        "quantization_config": {"bits": 4, "nested": [1, {"a": None}]},
        "transformers_version": "4.38.2",
        "something": None,
        "model_max_length": 4096,
        "_attn_implementation_autoset": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(TINY | unknown))
    config = CohereConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    for key, value in unknown.items():
        assert getattr(config, key) == written[key] == value
    assert CohereConfig.from_pretrained(tmp_path / "again") == config


def test_runtime_choices_are_not_written() -> None:
    config = CohereConfig(attn_implementation="eager", name_or_path="here")
    assert (config.attn_implementation, config.name_or_path) == ("eager", "here")
    assert not {"attn_implementation", "name_or_path"} & set(config.to_dict())
    assert not [key for key in config.to_dict() if "attn_implementation" in key or "name_or_path" in key]


def test_overrides(tmp_path: Path) -> None:
    CohereConfig(**TINY, model_max_length=99).save_pretrained(tmp_path)
    config = CohereConfig.from_pretrained(tmp_path, hidden_act="gelu", attn_implementation="eager", model_max_length=7)
    assert (config.hidden_act, config.attn_implementation, config.model_max_length) == ("gelu", "eager", 7)
    assert config.vocab_size == 99
    with pytest.raises(UnsupportedOptionError, match=r"no such field in the configuration: hidden_actt"):
        CohereConfig.from_pretrained(tmp_path, hidden_actt="gelu")
    with pytest.raises(ConfigError, match="hidden_act is 'gellu'"):
        CohereConfig.from_pretrained(tmp_path, hidden_act="gellu")


def test_overriding_heads_does_not_keep_derived_values() -> None:
    # num_key_value_heads is always a number here; one that was given must survive another's override
    config = CohereConfig.from_dict(TINY | {"num_key_value_heads": 2}, num_attention_heads=8)
    assert (config.num_key_value_heads, config.head_dim) == (2, 4)


def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    for theta in (1e4, 2e4):
        CohereConfig(rope_theta=theta).save_pretrained(tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["config.json"]
    assert CohereConfig.from_pretrained(tmp_path / "new" / "folder").rope_theta == 2e4


def test_from_subfolder(tmp_path: Path) -> None:
    CohereConfig(**TINY).save_pretrained(tmp_path / "sub")
    assert CohereConfig.from_pretrained(tmp_path, subfolder="sub").vocab_size == 99


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        CohereConfig.from_pretrained(tmp_path)
    for text, message in (("{", "is not valid JSON"), ("[1]", "holds a list, but must hold a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointCorruptError, match=message):
            CohereConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointCorruptError, match=r"config\.json is not valid JSON"):
        CohereConfig.from_pretrained(tmp_path)


def test_another_architecture_is_refused() -> None:
    for kind in ("cohere2", "llama"):
        with pytest.raises(ConfigError, match=rf"model of type '{kind}'.*runs the type 'cohere'"):
            CohereConfig.from_dict({"model_type": kind})


def test_comparison_copy_and_text() -> None:
    config = CohereConfig(**TINY, extra=[1])
    other = copy.deepcopy(config)
    assert other == config
    other.extra.append(2)
    assert other != config
    assert config != "config"
    assert json.loads(repr(config).removeprefix("CohereConfig ")) == config.to_dict()
    assert json.loads(config.to_json_string(use_diff=False)) == config.to_dict()
    with pytest.raises(TypeError, match="unhashable"):
        hash(config)


def test_a_function_cannot_be_written(tmp_path: Path) -> None:
    config = CohereConfig(hidden_act=torch.relu)
    with pytest.raises(ConfigError, match="hidden_act is a function"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# -- the published checkpoints -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(shared_data: Path) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = json.loads((shared_data / "known_configs.json").read_text())
    return configs


def test_presets_are_the_published_checkpoints(known: dict[str, dict[str, Any]]) -> None:
    assert CohereConfig.preset_names() == PUBLISHED == tuple(known)


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_holds_every_published_value(name: str, known: dict[str, dict[str, Any]]) -> None:
    config, published = CohereConfig.preset(name), dict(known[name]["config"])
    # of two, the type is known from copies only, which the data says in words behind it
    assert str(config.dtype).removeprefix("torch.") in published.pop("torch_dtype")
    assert config == CohereConfig.from_dict(published, dtype=config.dtype)
    for key, value in published.items():
        assert getattr(config, key) == value, key
    assert CohereConfig.preset(f"CohereForAI/{name}") == CohereConfig.preset(f"CohereLabs/{name}") == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_published_checkpoints(name: str, known: dict[str, dict[str, Any]]) -> None:
    with torch.device("meta"):
        model = CohereForCausalLM(CohereConfig.preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == known[name]["params"]


def test_usable_context_of_the_published_checkpoints() -> None:
    for name in PUBLISHED:
        expected = 131072 if "command-r" in name else 8192
        assert CohereConfig.preset(name).context_length == expected, name
    assert CohereConfig.preset("c4ai-command-r-v01").max_position_embeddings == 8192


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'command-x'; there are c4ai-command-r-v01, "):
        CohereConfig.preset("command-x")


# -- what is refused -----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{name}_{value}": ({name: value}, rf"{name} is {value!r}, but must be a whole number of at least 1")
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
        for value in (0, -1, 1.5, "8", True)
    },
    "hidden_size_heads": ({"hidden_size": 100}, r"hidden_size \(100\) is not a multiple of num_attention_heads \(64\)"),
    "head_dim_odd": ({"head_dim": 7}, r"head_dim is 7, but rotary positions need an even number"),
    "head_dim_derived": ({"hidden_size": 192}, r"head_dim is 3, but rotary"),
    "head_dim_negative": ({"head_dim": -2}, r"head_dim is -2, but"),
    "head_dim_zero": ({"head_dim": 0}, r"head_dim is 0, but"),
    "head_dim_text": ({"head_dim": "8"}, r"head_dim is '8', but"),
    "groups": (
        {"num_key_value_heads": 7},
        r"num_attention_heads \(64\) .*multiple of num_key_value_heads \(7\)",
    ),
    "dropout_one": ({"attention_dropout": 1.0}, r"attention_dropout is 1.0, but must be .* from 0 to below 1"),
    "dropout_negative": ({"attention_dropout": -0.1}, r"attention_dropout is -0.1, but"),
    "dropout_text": ({"attention_dropout": "0.1"}, r"attention_dropout is '0.1', but"),
    "dropout_nan": ({"attention_dropout": math.nan}, r"attention_dropout is nan, but"),
    "eps": ({"layer_norm_eps": 0.0}, r"layer_norm_eps is 0.0, but must be .*over 0"),
    "eps_text": ({"layer_norm_eps": "1e-5"}, r"layer_norm_eps is '1e-5', but must be .*over 0"),
    "eps_nan": ({"layer_norm_eps": math.nan}, r"layer_norm_eps is nan, but must be .*over 0"),
    "theta": ({"rope_theta": -1.0}, r"rope_theta is -1.0, but must be .*over 0"),
    "theta_none": ({"rope_theta": None}, r"rope_theta is None, but must be .*over 0"),
    "theta_infinite": ({"rope_theta": math.inf}, r"rope_theta is inf, but must be .*over 0"),
    "scale_none": ({"logit_scale": None}, r"logit_scale is None, but must be a number"),
    "scale_text": ({"logit_scale": "0.1"}, r"logit_scale is '0.1', but must be a number"),
    "range_negative": ({"initializer_range": -0.1}, r"initializer_range is -0.1, but must be .*at least 0"),
    "pad_large": ({"pad_token_id": 256000}, r"pad_token_id is 256000, but .*within the vocabulary of 256000"),
    "pad_negative": ({"pad_token_id": -2}, r"pad_token_id is -2, but .*within the vocabulary of 256000"),
    "pad_text": ({"pad_token_id": "0"}, r"pad_token_id is '0', but must be .*within"),
    "act": ({"hidden_act": "swiglu"}, r"hidden_act is 'swiglu', but must be one of silu, swish, gelu"),
    "act_list": ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\], but must be one of silu"),
    "act_none": ({"hidden_act": None}, r"hidden_act is None, but must be one of silu"),
    "table": (
        {"rope_table_dtype": "float64"},
        r"rope_table_dtype is 'float64', .*one of activation, float32",
    ),
    "partial": ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0.5.* leave it out"),
    "dtype": ({"dtype": "float99"}, r"dtype is 'float99', but must be a floating type"),
    "dtype_integer": ({"dtype": "int64"}, r"dtype is 'int64', but must be a floating type"),
    "torch_dtype": ({"torch_dtype": "auto"}, r"dtype is 'auto', but must be a floating type"),
    "dtype_object": ({"dtype": torch.int64}, r"dtype is torch.int64, but must be a floating type"),
    "two_dtypes": ({"dtype": "float16", "torch_dtype": "bfloat16"}, r"dtype='float16' and torch_dtype='bfloat16'"),
    "derived": ({"context_length": 5}, r"context_length is derived.*cannot be a field"),
    "method": ({"validate": True}, r"validate is .*a name of CohereConfig itself"),
    **{
        f"{name}_{value}": ({name: value}, rf"{name} is {value!r}, but must be True or False")
        for name in ("use_qk_norm", "use_cache", "tie_word_embeddings", "attention_bias", "output_attentions")
        for value in ("false", None, 0)
    },
    "eos_text": ({"eos_token_id": "a"}, r"eos_token_id is 'a', but must be None, a whole number or a list of them"),
    "eos_list": ({"eos_token_id": [1, 2.5]}, r"eos_token_id is \[1, 2.5\], but must be None, a whole number"),
    "bos_text": ({"bos_token_id": "5"}, r"bos_token_id is '5', but must be None or a whole number"),
    "theta_huge": ({"rope_theta": 10**400}, r"rope_theta is 1000.*, but must be .*over 0"),
    "length_text": ({"model_max_length": "131072"}, r"model_max_length is '131072', but must be None or a whole"),
    "length_fraction": ({"model_max_length": 0.5}, r"model_max_length is 0.5, but must be None or a whole"),
    "labels_text": ({"num_labels": "3"}, r"num_labels is '3', but must be a whole number"),
    "labels_list": ({"id2label": ["a"]}, r"id2label is \['a'\], but must be a dictionary"),
    "labels_two": ({"num_labels": 3, "id2label": {0: "a"}}, r"num_labels is 3, but id2label has 1 names"),
    "private": ({"_head_dim": 7}, r"_head_dim is .*a name of CohereConfig itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        CohereConfig(**fields)


def test_what_is_unusual_but_right() -> None:
    assert CohereConfig(pad_token_id=None).pad_token_id is None
    assert CohereConfig(pad_token_id=-1).pad_token_id == -1
    assert CohereConfig(logit_scale=1, rope_theta=10000, layer_norm_eps=1).logit_scale == 1
    assert CohereConfig(partial_rotary_factor=1.0).partial_rotary_factor == 1.0
    assert CohereConfig(**(TINY | {"hidden_size": 33}), head_dim=8).head_dim == 8  # 33 // 4 too, but given
    assert CohereConfig(dtype="float16", torch_dtype="float16").dtype == torch.float16
    assert CohereConfig(hidden_act=torch.tanh).hidden_act is torch.tanh
