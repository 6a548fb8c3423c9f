"""CohereConfig as a dictionary and a file beyond fields and values: names that collide, changes, other classes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from parity import SWITCHES, TINY, transformers
from quarterdeck import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, CohereModel
from quarterdeck.errors import CheckpointNotFoundError, ConfigError, InputError, UnsupportedOptionError

LINEAR = {"rope_type": "linear", "factor": 4.0}


# -- fields assigned later -----------------------------------------------------------------------------


def test_an_assigned_scaling_may_have_the_older_key() -> None:
    config = CohereConfig(**TINY)
    config.rope_scaling = {"type": "linear", "factor": 4.0}
    assert config.rope_scaling == config.to_dict()["rope_scaling"] == LINEAR
    assert config == CohereConfig(**TINY, rope_scaling=LINEAR)
    scaled, plain = (CohereModel(one).rotary_emb.inv_freq for one in (config, CohereConfig(**TINY)))
    assert torch.equal(scaled, plain / 4)
    with pytest.raises(ConfigError, match="lacks rope_type"):
        config.rope_scaling = {"factor": 2.0}


def test_an_assigned_type_is_a_type() -> None:
    config = CohereConfig(**TINY)
    config.dtype = "bfloat16"
    assert config.dtype is config.torch_dtype is torch.bfloat16
    assert json.loads(config.to_json_string())["dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match="dtype is 'bfloat61'"):
        config.dtype = "bfloat61"


def test_assigned_ids() -> None:
    config = CohereConfig(eos_token_id=(1, 2))
    assert config.eos_token_id == json.loads(config.to_json_string())["eos_token_id"] == [1, 2]
    config.eos_token_id = (3,)
    assert (config.eos_token_id, config.eos_token_ids) == ([3], (3,))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_act", "nope", "hidden_act is 'nope', but must be one of"),
        ("num_key_value_heads", 3, r"num_attention_heads \(4\) is not a multiple of num_key_value_heads \(3\)"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("use_qk_norm", "false", "use_qk_norm is 'false'"),
        ("rope_scaling", {"rope_type": "su"}, "rope_type is 'su'"),
    ],
)
@pytest.mark.parametrize("model_class", [CohereModel, CohereForCausalLM])
def test_a_model_checks_what_was_assigned(model_class: type[Any], name: str, value: Any, message: str) -> None:
    config = CohereConfig(**TINY)
    setattr(config, name, value)
    with pytest.raises(ConfigError, match=message):
        model_class(config)


def test_a_model_checks_the_attention_of_its_configuration() -> None:
    config = CohereConfig(**TINY)
    config.attn_implementation = "periscope"
    with pytest.raises(UnsupportedOptionError, match="periscope"):
        CohereModel(config)


def test_update() -> None:
    config = CohereConfig(**TINY)
    config.update({"rope_scaling": {"type": "linear", "factor": 4.0}, "dtype": "float16", "mine": 1, "head_dim": 16})
    assert (config.rope_scaling, config.dtype, config.mine, config.head_dim) == (LINEAR, torch.float16, 1, 16)
    config.update(CohereConfig(logit_scale=2.0).to_dict())
    assert (config.logit_scale, config.hidden_size, config.mine) == (2.0, 8192, 1)


@pytest.mark.parametrize(
    "change", [{"hidden_act": "nope"}, {"validate": 1}, {"context_length": 5}, {"model_type": "llama"}]
)
def test_an_update_that_cannot_be_changes_nothing(change: dict[str, Any]) -> None:
    config = CohereConfig(**TINY)
    before = copy.deepcopy(config)
    with pytest.raises(ConfigError):
        config.update({"logit_scale": 3.0} | change)
    assert config == before


# -- names of the class itself in a file ---------------------------------------------------------------


def test_keys_that_are_names_of_the_class_are_kept_aside(tmp_path: Path) -> None:
    taken = {"context_length": 131072, "validate": True, "_kept": {"a": 1}, "eos_token_ids": [1], "_dtype": "x"}
    (tmp_path / "config.json").write_text(json.dumps(TINY | taken))
    config = CohereConfig.from_pretrained(tmp_path)
    assert config.context_length == TINY["max_position_embeddings"]
    config.validate()
    changed = CohereConfig.from_pretrained(tmp_path, logit_scale=3.0)
    for one in (config, changed, copy.deepcopy(config)):
        assert {key: json.loads(one.to_json_string())[key] for key in taken} == taken
    assert config != CohereConfig(**TINY)
    with pytest.raises(UnsupportedOptionError, match="context_length"):
        CohereConfig.from_pretrained(tmp_path, context_length=5)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_the_attention_of_a_file(key: str) -> None:
    config = CohereConfig.from_dict({**TINY, key: "eager", "_attn_implementation_autoset": True})
    assert config.attn_implementation == "eager"
    assert [name for name in config.to_dict() if "attn" in name] == ["_attn_implementation_autoset"]
    assert CohereConfig(**TINY, _attn_implementation="sdpa").attn_implementation == "sdpa"


# -- labels, as every configuration of transformers has them --------------------------------------------


def test_labels() -> None:
    ours, theirs = CohereConfig(**TINY, num_labels=5), transformers.CohereConfig(**TINY, num_labels=5)
    for _ in range(2):
        for name in ("num_labels", "id2label", "label2id"):
            assert getattr(ours, name) == getattr(theirs, name)
        ours.num_labels = theirs.num_labels = 3
    assert "num_labels" not in ours.to_dict()
    named = {"id2label": {"0": "port", "1": "starboard", "2": "aft"}, "label2id": {"port": 0}}
    for config in (CohereConfig(**named), transformers.CohereConfig(**named)):
        assert (config.num_labels, config.id2label[2], config.label2id) == (3, "aft", {"port": 0})
    assert CohereConfig.from_dict(CohereConfig(**named).to_dict(), num_labels=4).id2label[3] == "LABEL_3"
    assert "id2label" not in CohereConfig().to_dict()
    assert CohereConfig(num_labels=0).id2label == transformers.CohereConfig(num_labels=0).id2label == {}


# -- methods of transformers' configurations -----------------------------------------------------------


@pytest.mark.parametrize("case", ["defaults", *SWITCHES])
def test_what_differs_from_the_defaults_of_all_configurations(case: str) -> None:
    fields = {} if case == "defaults" else TINY | SWITCHES[case]
    theirs = transformers.CohereConfig(**fields).to_diff_dict()
    del theirs["transformers_version"]
    assert CohereConfig(**fields).to_diff_dict() == theirs


@pytest.mark.parametrize("case", ["defaults", *SWITCHES])
def test_texts_with_and_without_the_defaults_of_all_configurations(case: str, tmp_path: Path) -> None:
    fields = TINY if case == "defaults" else TINY | SWITCHES[case]
    ours, theirs = CohereConfig(**fields), transformers.CohereConfig(**fields)
    path = tmp_path / "x.json"
    for use_diff in (True, False):
        texts = [json.loads(one.to_json_string(use_diff=use_diff)) for one in (ours, theirs)]
        if use_diff:
            del texts[1]["transformers_version"]
            assert texts[0] == texts[1]
        assert texts[0].items() <= texts[1].items()
        assert ("tie_word_embeddings" in texts[0]) == ("tie_word_embeddings" in texts[1])
        ours.to_json_file(path, use_diff=use_diff)
        assert path.read_text() == ours.to_json_string(use_diff)
    assert ours.to_json_string() == ours.to_json_string(use_diff=True)


def test_files_of_any_name(tmp_path: Path) -> None:
    config = CohereConfig(**TINY, rope_scaling=LINEAR, dtype="float16", extra=[1])
    path = tmp_path / "mine.json"
    config.to_json_file(path)
    assert CohereConfig.from_json_file(path) == CohereConfig.from_json_file(str(path)) == config
    assert transformers.CohereConfig.from_json_file(path).rope_scaling == LINEAR
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.json"]
    with pytest.raises(CheckpointNotFoundError, match=r"no file .*absent.json"):
        CohereConfig.from_json_file(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"mine.json' is a file; give a folder"):
        config.save_pretrained(path)


def test_options_that_ask_for_nothing(tmp_path: Path) -> None:
    CohereConfig(**TINY).save_pretrained(tmp_path)
    nothing = dict.fromkeys(("proxies", "use_auth_token", "resume_download", "code_revision", "gguf_file"))
    read = CohereConfig.from_pretrained(tmp_path, trust_remote_code=False, return_unused_kwargs=False, **nothing)
    assert read == CohereConfig(**TINY)
    for option in ({"trust_remote_code": True}, {"proxies": {}}, {"return_unused_kwargs": 0}):
        with pytest.raises(UnsupportedOptionError, match=next(iter(option))):
            CohereConfig.from_pretrained(tmp_path, **option)


def test_the_text_configuration_is_itself() -> None:
    config = CohereConfig(**TINY)
    assert config.get_text_config() is config.get_text_config(decoder=True) is config


def test_a_dictionary_is_a_copy() -> None:
    config = CohereConfig(**TINY, rope_scaling=LINEAR)
    config.to_dict()["rope_scaling"]["factor"] = 2.0
    assert config.rope_scaling == LINEAR


# -- a configuration of transformers in place of ours --------------------------------------------------


def test_the_peers_configuration_is_named_with_the_remedy(tmp_path: Path) -> None:
    theirs: Any = transformers.CohereConfig(**TINY)
    ours = CohereConfig.from_dict(theirs.to_dict())
    model = CohereForCausalLM(ours)
    ways = [
        lambda config: CohereForCausalLM(config),
        lambda config: CohereForCausalLM._from_config(config),
        lambda config: AutoModelForCausalLM.from_config(config),
        lambda config: CohereForCausalLM.from_pretrained(None, config=config, state_dict=model.state_dict()),
        lambda config: AutoModelForCausalLM.from_pretrained(None, config=config, state_dict=model.state_dict()),
    ]
    for way in ways:
        with pytest.raises(InputError, match=r"transformers\..*CohereConfig, .*CohereConfig.from_dict\(config.to_dic"):
            way(theirs)
        assert isinstance(way(ours), CohereForCausalLM)


def test_what_is_no_configuration_at_all() -> None:
    for way in (CohereForCausalLM, AutoModelForCausalLM.from_config, CohereForCausalLM._from_config):
        with pytest.raises(InputError, match=r"config is of the type str, but must be .*use from_pretrained"):
            way("midshipman")  # type: ignore[operator]


# -- rope_parameters: the one dictionary that transformers 5 writes ------------------------------------------------


def test_rope_parameters_are_both_older_names() -> None:
    config = CohereConfig(rope_parameters={"rope_theta": 8e6, "rope_type": "default"})
    assert (config.rope_theta, config.rope_scaling) == (8e6, None)
    scaled = CohereConfig(rope_parameters={"rope_theta": 4e6, "rope_type": "linear", "factor": 2.0})
    assert (scaled.rope_theta, scaled.rope_scaling) == (4e6, {"rope_type": "linear", "factor": 2.0})
    assert scaled.rope_parameters == {"rope_theta": 4e6, "rope_type": "linear", "factor": 2.0}
    assert CohereConfig(rope_theta=75e6).rope_parameters == {"rope_theta": 75e6, "rope_type": "default"}


def test_a_file_of_transformers_5_keeps_its_frequencies(tmp_path: Path) -> None:
    values = CohereConfig.preset("c4ai-command-r-v01").to_dict()
    theta = values.pop("rope_theta")
    values.pop("rope_scaling")
    values["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = CohereConfig.from_pretrained(tmp_path)
    assert config == CohereConfig.preset("c4ai-command-r-v01")
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == theta
    assert "rope_parameters" not in written


def test_rope_parameters_replace_what_a_file_says(tmp_path: Path) -> None:
    CohereConfig(rope_theta=8e6, rope_scaling={"rope_type": "linear", "factor": 4.0}).save_pretrained(tmp_path)
    config = CohereConfig.from_pretrained(tmp_path, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert (config.rope_theta, config.rope_scaling) == (5e5, None)
    config.rope_parameters = {"rope_theta": 1e6, "rope_type": "linear", "factor": 3.0}
    assert (config.rope_theta, config.rope_scaling) == (1e6, {"rope_type": "linear", "factor": 3.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_parameters": {"rope_theta": 8e6}, "rope_theta": 4e6}, "contradicts rope_theta=4000000.0"),
        (
            {"rope_parameters": {"rope_theta": 8e6}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "contradicts",
        ),
        ({"rope_parameters": 8e6}, "must be a dictionary"),
        ({"rope_parameters": {"rope_theta": 8e6, "partial_rotary_factor": 0.5}}, "rotate whole heads"),
    ],
)
def test_rope_parameters_that_cannot_be_right_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CohereConfig(**fields)
