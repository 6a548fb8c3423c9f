"""Auto classes: which class a checkpoint gets, and what is said when there is none for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from quarterdeck import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    CohereModel,
    CohereTokenizerFast,
)
from quarterdeck.chat import render
from quarterdeck.chat.prompts.families import builtin_templates
from quarterdeck.errors import (
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    TokenizerError,
    UnsupportedOptionError,
)

pytest_plugins = ["checkpoint_fixtures"]

TINY = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"eos_token_id": 1, "bos_token_id": 2}


def edited(checkpoint: Path, folder: Path, filename: str, **changes: Any) -> Path:
    """A copy of the checkpoint with other values in one of its JSON files; None removes a key."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    values = json.loads((folder / filename).read_text()) | changes
    values = {key: value for key, value in values.items() if value is not None}
    (folder / filename).write_text(json.dumps(values))
    return folder


def test_classes_of_a_checkpoint(checkpoint: Path) -> None:
    assert type(AutoConfig.from_pretrained(checkpoint)) is CohereConfig
    assert type(AutoTokenizer.from_pretrained(str(checkpoint))) is CohereTokenizerFast
    assert type(AutoModel.from_pretrained(checkpoint)) is CohereModel
    assert type(AutoModelForCausalLM.from_pretrained(checkpoint)) is CohereForCausalLM


def test_results_are_those_of_the_classes_themselves(checkpoint: Path) -> None:
    assert AutoConfig.from_pretrained(checkpoint) == CohereConfig.from_pretrained(checkpoint)
    text = "The tallest penguins"
    ids = AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt").input_ids
    assert torch.equal(ids, CohereTokenizerFast.from_pretrained(checkpoint)(text, return_tensors="pt").input_ids)
    own, chosen = (cls.from_pretrained(checkpoint) for cls in (CohereForCausalLM, AutoModelForCausalLM))
    assert torch.equal(own(ids).logits, chosen(ids).logits)
    assert torch.equal(own.model(ids)[0], AutoModel.from_pretrained(checkpoint)(ids)[0])


def test_keywords_go_to_the_class(checkpoint: Path) -> None:
    assert AutoConfig.from_pretrained(checkpoint, use_cache=False).use_cache is False
    assert AutoTokenizer.from_pretrained(checkpoint, padding_side="right", use_fast=True).padding_side == "right"
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, torch_dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu", trust_remote_code=False
    )
    assert (model.dtype, model.config.attn_implementation) == (torch.bfloat16, "eager")


def test_a_subfolder_is_looked_into(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "inner")
    assert AutoConfig.from_pretrained(tmp_path, subfolder="inner").hidden_size == 32
    assert AutoModel.from_pretrained(tmp_path, subfolder="inner").config.hidden_size == 32
    assert len(AutoTokenizer.from_pretrained(tmp_path, subfolder="inner")) > 300


def test_a_configuration_of_ones_own(checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(checkpoint, logit_scale=0.5)
    assert AutoModelForCausalLM.from_pretrained(checkpoint, config=config).config.logit_scale == 0.5
    weights = CohereForCausalLM(config).state_dict()
    assert type(AutoModelForCausalLM.from_pretrained(None, config=config, state_dict=weights)) is CohereForCausalLM
    with pytest.raises(InputError, match="nothing to load"):
        AutoModel.from_pretrained(None)


def test_for_model_and_from_config() -> None:
    config = AutoConfig.for_model("cohere", **TINY, dtype="bfloat16")
    assert type(config) is CohereConfig
    assert type(AutoModel.from_config(config)) is CohereModel
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert (type(model), model.dtype, model.config.attn_implementation) == (CohereForCausalLM, torch.bfloat16, "eager")
    assert config.attn_implementation is None
    assert AutoModel.from_config(config, torch_dtype="float16").dtype == torch.float16
    assert AutoModel.from_config(AutoConfig.for_model("cohere", **TINY)).dtype == torch.float32


def test_subclasses_of_the_configuration_have_the_same_models() -> None:
    class Mine(CohereConfig):
        pass

    assert type(AutoModel.from_config(Mine(**TINY))) is CohereModel


def test_other_architectures_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "model", "config.json", model_type="cohere2")
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(ConfigError, match=r"'cohere2'.*supported: 'cohere'"):
            auto.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"'llama'.*'cohere'"):
        AutoConfig.for_model("llama")
    edited(checkpoint, folder, "config.json", model_type=None)
    with pytest.raises(ConfigError, match="no model_type"):
        AutoConfig.from_pretrained(folder)
    edited(checkpoint, folder, "config.json", model_type=["cohere"])
    with pytest.raises(ConfigError, match="not supported"):
        AutoConfig.from_pretrained(folder)


def test_configurations_of_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"of the type dict, .* make one with CohereConfig.from_dict\(config\)"):
        AutoModel.from_config({"model_type": "cohere"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["CohereTokenizerFast", "CohereTokenizer", "PreTrainedTokenizerFast", None])
def test_tokenizer_classes_that_are_ours(checkpoint: Path, tmp_path: Path, name: str | None) -> None:
    folder = edited(checkpoint, tmp_path / "model", "tokenizer_config.json", tokenizer_class=name)
    assert type(AutoTokenizer.from_pretrained(folder)) is CohereTokenizerFast


def test_other_tokenizer_classes_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "model", "tokenizer_config.json", tokenizer_class="GemmaTokenizerFast")
    with pytest.raises(TokenizerError, match=r"'GemmaTokenizerFast'.*CohereTokenizerFast"):
        AutoTokenizer.from_pretrained(folder)


def test_a_tokenizer_without_a_configuration_file(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "tokenizer.json", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("Hi")["input_ids"][0] == 5


@pytest.mark.parametrize("auto", [AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM])
def test_auto_classes_have_no_objects(auto: Any) -> None:
    with pytest.raises(InputError, match=rf"{auto.__name__}.from_pretrained"):
        auto()


@pytest.mark.parametrize("auto", [AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM])
def test_unknown_keywords_and_remote_code_are_refused(checkpoint: Path, auto: Any) -> None:
    with pytest.raises(UnsupportedOptionError, match="trust_remote_code"):
        auto.from_pretrained(checkpoint, trust_remote_code=True)
    with pytest.raises((UnsupportedOptionError, TokenizerError, TypeError), match="not_an_option"):
        auto.from_pretrained(checkpoint, not_an_option=1)


def test_slow_tokenizers_are_refused(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="use_fast"):
        AutoTokenizer.from_pretrained(checkpoint, use_fast=False)


@pytest.mark.parametrize("auto", [AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM])
def test_nothing_there(tmp_path: Path, auto: Any) -> None:
    with pytest.raises(CheckpointNotFoundError):
        auto.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        auto.from_pretrained(tmp_path / "missing")


# -- chat templates --------------------------------------------------------------------------------------


def test_a_missing_template_is_the_family_s(checkpoint_without_template: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_without_template)
    assert tokenizer.chat_template == builtin_templates("command-r")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ahoy"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == render(messages).token_ids(tokenizer)
    documents = [{"title": "Tall penguins", "text": "Emperor penguins are the tallest."}]
    text = tokenizer.apply_grounded_generation_template(messages, documents, tokenize=False, add_generation_prompt=True)
    assert text == render(messages, documents=documents).text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert CohereTokenizerFast.from_pretrained(tmp_path / "saved").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["c4ai-command-r-v01", "c4ai-command-r-08-2024", "aya-expanse-8b"])
def test_families_are_told_by_the_name(checkpoint_without_template: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "aya" / name  # the folders around it say nothing
    shutil.copytree(checkpoint_without_template, folder)
    own = builtin_templates(name)
    expected = own["default"] if name.startswith("aya") else own
    assert AutoTokenizer.from_pretrained(folder).chat_template == expected


def test_a_template_that_is_there_is_left_alone(checkpoint: Path, checkpoint_without_template: Path) -> None:
    own = CohereTokenizerFast.from_pretrained(checkpoint).chat_template
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == own != builtin_templates()
    given = AutoTokenizer.from_pretrained(checkpoint_without_template, chat_template="{{ messages }}")
    assert given.chat_template == "{{ messages }}"


def test_none_is_given_where_none_is_wanted_or_could_be_written(
    checkpoint_without_template: Path, tmp_path: Path
) -> None:
    assert AutoTokenizer.from_pretrained(checkpoint_without_template, chat_template=None).chat_template is None
    assert CohereTokenizerFast.from_pretrained(checkpoint_without_template).chat_template is None
    folder = tmp_path / "model"
    shutil.copytree(checkpoint_without_template, folder)
    for path in folder.glob("*token*.json"):
        path.write_text(path.read_text().replace("<|CHATBOT_TOKEN|>", "<|PARROT_TOKEN|>"))
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
