"""Which backend computes: at load, by configuration, at run time, under the names that transformers has for it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import TINY, make_ours, make_pair, random_ids, transformers
from quarterdeck import AutoModelForCausalLM, CohereConfig, CohereForCausalLM
from quarterdeck.attention import AttentionMask
from quarterdeck.attention.eager import eager_attention
from quarterdeck.errors import ConfigError, UnsupportedOptionError


def mine(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
) -> tuple[Tensor, None]:
    """Unlike any other: attention that looks away."""
    return -eager_attention(query, key, value, mask, scale=scale, dropout=dropout)[0], None


def computed_by(model: CohereForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function that runs in the layers."""
    seen: list[Any] = []
    plain = type(model.model.layers[0]).forward
    monkeypatch.setattr(
        type(model.model.layers[0]),
        "forward",
        lambda self, x, shared: seen.append(shared.attend) or plain(self, x, shared),
    )
    with torch.no_grad():
        model(random_ids(1, 4))
    monkeypatch.undo()
    return seen[0]


def test_transformers_own_test_of_the_setter() -> None:
    for config in (transformers.CohereConfig(**TINY), CohereConfig(**TINY)):
        assert config._attn_implementation is None
        config._attn_implementation = "eager"
        assert config._attn_implementation == "eager"
        config._attn_implementation = "sdpa"
        assert config._attn_implementation == "sdpa"
        config._attn_implementation = {"": "eager"}
        assert config._attn_implementation == "eager"
        config._attn_implementation = {}
        assert config._attn_implementation == "eager"


def test_transformers_own_test_of_setting_it_dynamically() -> None:
    for models, config_class in ((transformers, transformers.CohereConfig), (None, CohereConfig)):
        config = config_class(**TINY)
        config._attn_implementation = "eager"
        model = (models.CohereForCausalLM if models else CohereForCausalLM)(config)
        assert model.config._attn_implementation == model.model.config._attn_implementation == "eager"
        model.set_attn_implementation("sdpa")
        assert model.config._attn_implementation == model.model.config._attn_implementation == "sdpa"
        model.set_attn_implementation({"": "eager"})
        assert model.config._attn_implementation == model.model.config._attn_implementation == "eager"


def test_the_default_has_a_name_once_there_is_a_model() -> None:
    pair = make_pair("sdpa")
    assert pair.ours.config._attn_implementation == pair.theirs.config._attn_implementation == "sdpa"
    config = CohereConfig(**TINY)
    assert config.attn_implementation is None
    assert CohereForCausalLM(config).config.attn_implementation == "sdpa"
    model = make_ours("eager")
    model.set_attn_implementation(None)
    assert model.config.attn_implementation == "sdpa"


WAYS: dict[str, Any] = {
    "config": lambda folder: CohereForCausalLM(CohereConfig(**TINY, attn_implementation="eager")),
    "config_dict": lambda folder: CohereForCausalLM(CohereConfig(**TINY, attn_implementation={"": "eager"})),
    "older_name": lambda folder: CohereForCausalLM(CohereConfig(**TINY, _attn_implementation="eager")),
    "load": lambda folder: CohereForCausalLM.from_pretrained(folder, attn_implementation="eager"),
    "load_dict": lambda folder: CohereForCausalLM.from_pretrained(folder, attn_implementation={"": "eager"}),
    "auto": lambda folder: AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"),
    "loaded_config": lambda folder: CohereForCausalLM.from_pretrained(
        folder, config=CohereConfig.from_pretrained(folder, attn_implementation="eager")
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_ours("eager").save_pretrained(path)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_choosing_reaches_the_layers(way: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WAYS[way](folder)
    assert model.config.attn_implementation == "eager"
    assert computed_by(model, monkeypatch) is eager_attention
    model.config._attn_implementation = "sdpa"
    assert computed_by(model, monkeypatch) is not eager_attention


def test_the_choice_is_not_written(folder: Path) -> None:
    assert "attn" not in (folder / "config.json").read_text().replace("attention", "")
    assert CohereConfig.from_pretrained(folder).attn_implementation is None


def test_parts_that_a_model_does_not_have_are_refused() -> None:
    model = make_ours("sdpa")
    for choose in (
        model.set_attn_implementation,
        lambda given: CohereConfig(**TINY, attn_implementation=given),
        lambda given: setattr(model.config, "_attn_implementation", given),
    ):
        with pytest.raises(ConfigError, match=r"the key 'text_config'.*one name for the whole model"):
            choose({"text_config": "eager"})
    assert model.config.attn_implementation == "sdpa"


def test_a_name_that_is_not_here_changes_nothing() -> None:
    model = make_ours("eager")
    with pytest.raises(UnsupportedOptionError, match="not downloaded from the hub"):
        model.set_attn_implementation("kernels-community/flash-attn")
    assert model.config.attn_implementation == "eager"


# -- a function of one's own ---------------------------------------------------------------------------


@torch.no_grad()
def test_a_function_of_ones_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = CohereForCausalLM.from_pretrained(folder, attn_implementation=mine), random_ids(1, 5)
    assert computed_by(model, monkeypatch) is mine
    away = model(ids).logits
    plain = CohereForCausalLM.from_pretrained(folder)
    assert not torch.allclose(away, plain(ids).logits, atol=1e-2)
    plain.set_attn_implementation(mine)
    assert torch.equal(plain(ids).logits, away)
    assert copy.deepcopy(model).config.attn_implementation is mine
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 8)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert (
        CohereConfig.from_dict(
            model.config.to_dict() | {"attn_implementation": mine}, use_cache=False
        ).attn_implementation
        is mine
    )


@torch.no_grad()
def test_output_attentions_are_eagers_whatever_is_chosen() -> None:
    model = make_ours("eager")
    ids = random_ids(1, 5)
    truth = model(ids, output_attentions=True)
    for chosen in ("sdpa", "flex_attention", mine):
        model.set_attn_implementation(chosen)
        output = model(ids, output_attentions=True)
        assert torch.equal(output.attentions[1], truth.attentions[1])
        assert torch.equal(output.logits, truth.logits)
