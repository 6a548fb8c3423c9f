"""Checkpoints to models and back; the same files in transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hub_stand_in import MAIN, OLDER, HubStandIn, hub_in_place
from quarterdeck.config import CohereConfig
from quarterdeck.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
)
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.model import CohereForCausalLM, CohereModel
from quarterdeck.weights import save

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 7,
}
KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "qk_norm": {"use_qk_norm": True},
    "bias": {"attention_bias": True},
}
IDS = torch.tensor([[5, 11, 12, 13, 90, 2], [5, 3, 95, 1, 40, 41]])


def tiny(**fields: Any) -> CohereForCausalLM:
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**TINY | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(input_ids=IDS).logits
    return result


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit(folder: Path, **fields: Any) -> None:
    """Changes fields of config.json; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# -- interchange with transformers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the peer that files are exchanged with")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_theirs_to_ours_and_back(tmp_path: Path, transformers: Any, kind: str, size: str) -> None:
    torch.manual_seed(0)
    theirs = transformers.CohereForCausalLM(transformers.CohereConfig(**TINY | KINDS[kind])).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    ours = CohereForCausalLM.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)

    ours.save_pretrained(tmp_path / "ours", max_shard_size=size)
    assert ((tmp_path / "ours" / "model.safetensors").exists()) == (size == "5GB")
    again, info = transformers.CohereForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert torch.equal(logits(again), logits(theirs))
    assert not info["missing_keys"] and not info["unexpected_keys"]  # noqa: PT018
    assert again.config.to_dict() | {"_name_or_path": ""} == theirs.config.to_dict() | {"_name_or_path": ""}
    assert again.generation_config.eos_token_id == 7


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_names_and_shapes_in_files(tmp_path: Path, transformers: Any, kind: str) -> None:
    transformers.CohereForCausalLM(transformers.CohereConfig(**TINY | KINDS[kind])).save_pretrained(tmp_path / "theirs")
    tiny(**KINDS[kind]).save_pretrained(tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in theirs.items()}


def test_bfloat16_both_ways(tmp_path: Path, transformers: Any) -> None:
    theirs = transformers.CohereForCausalLM(transformers.CohereConfig(**TINY)).to(torch.bfloat16).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = CohereForCausalLM.from_pretrained(tmp_path / "theirs", dtype="auto")
    assert ours.dtype == ours.config.dtype == torch.bfloat16
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0.02, atol=0.02)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.CohereForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(theirs))


def test_base_models_both_ways(tmp_path: Path, transformers: Any) -> None:
    theirs = transformers.CohereModel(transformers.CohereConfig(**TINY)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = CohereModel.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(IDS).last_hidden_state
        torch.testing.assert_close(ours(IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        ours.save_pretrained(tmp_path / "ours")
        again = transformers.CohereModel.from_pretrained(tmp_path / "ours")
        assert torch.equal(again(IDS).last_hidden_state, expected)


# -- heads and bases, tied and untied ----------------------------------------------------------------------


def test_a_round_trip_keeps_every_bit(checkpoint: Path) -> None:
    model = CohereForCausalLM.from_pretrained(checkpoint)
    assert not model.training
    assert torch.equal(logits(model), logits(tiny()))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")


def test_a_head_into_the_base_and_the_base_into_a_head(checkpoint: Path, tmp_path: Path) -> None:
    base = CohereModel.from_pretrained(checkpoint)
    base.save_pretrained(tmp_path / "base")
    assert "embed_tokens.weight" in load_file(tmp_path / "base" / "model.safetensors")
    assert torch.equal(logits(CohereForCausalLM.from_pretrained(tmp_path / "base")), logits(tiny()))


def test_an_untied_head_is_left_by_the_base_and_missed_by_the_next_head(tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    base, info = CohereModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    base.save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"missing in the checkpoint.*\n.*lm_head.weight \(96, 32\)"):
        CohereForCausalLM.from_pretrained(tmp_path)
    fresh, info = CohereForCausalLM.from_pretrained(tmp_path, strict=False, output_loading_info=True)
    assert info["missing_keys"] == ["lm_head.weight"]
    assert 0.01 < fresh.lm_head.weight.std() < 0.03  # initializer_range is 0.02
    assert torch.equal(fresh.model.norm.weight, model.model.norm.weight)


def test_a_redundant_head_is_accepted_if_it_is_the_embedding(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, checkpoint / "model.safetensors")
    model = CohereForCausalLM.from_pretrained(checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save_file(weights | {"lm_head.weight": embedding + 1}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match="tie_word_embeddings=False keeps both"):
        CohereForCausalLM.from_pretrained(checkpoint)
    untied = CohereForCausalLM.from_pretrained(checkpoint, tie_word_embeddings=False)
    assert torch.equal(untied.lm_head.weight, embedding + 1)
    assert not untied.config.tie_word_embeddings


def test_old_files_with_rotary_frequencies(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, checkpoint / "model.safetensors")
    assert torch.equal(logits(CohereForCausalLM.from_pretrained(checkpoint)), logits(tiny()))


# -- what does not fit -------------------------------------------------------------------------------------


def test_norms_that_the_configuration_forgets_are_not_dropped(tmp_path: Path) -> None:
    tiny(use_qk_norm=True).save_pretrained(tmp_path)
    edit(tmp_path, use_qk_norm=False)
    with pytest.raises(CheckpointMismatchError, match=r"4 unknown to the model.*\n.*\n.*q_norm.weight \(4, 8\)"):
        CohereForCausalLM.from_pretrained(tmp_path)
    _, info = CohereForCausalLM.from_pretrained(tmp_path, strict=False, output_loading_info=True)
    assert len(info["unexpected_keys"]) == 4


def test_missing_weights_get_the_values_of_an_untrained_model(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    edit(tmp_path, use_qk_norm=True, attention_bias=True)
    model, info = CohereForCausalLM.from_pretrained(tmp_path, strict=False, output_loading_info=True)
    assert len(info["missing_keys"]) == 12
    for name, parameter in model.named_parameters():
        if name in info["missing_keys"]:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0]
    first = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(first, tiny().model.layers[0].self_attn.q_proj.weight)


def test_other_shapes(checkpoint: Path) -> None:
    edit(checkpoint, vocab_size=100)
    with pytest.raises(CheckpointMismatchError, match=r"embed_tokens.weight: \(96, 32\), but \(100, 32\) in the model"):
        CohereForCausalLM.from_pretrained(checkpoint)
    model, info = CohereForCausalLM.from_pretrained(checkpoint, ignore_mismatched_sizes=True, output_loading_info=True)
    assert info["mismatched_keys"] == [("model.embed_tokens.weight", (96, 32), (100, 32))]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (100, 32)
    assert not model.model.embed_tokens.weight[0].any()  # the padding row
    assert 0.01 < model.lm_head.weight.std() < 0.03


def test_damaged_files(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointCorruptError, match="truncated"):
        CohereForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointCorruptError, match=r"config.json"):
        CohereForCausalLM.from_pretrained(checkpoint)


def test_pickles_and_nothing_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointUnsafeError, match=r"pytorch_model.bin"):
        CohereForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no config.json"):
        CohereForCausalLM.from_pretrained(checkpoint)


# -- saving ------------------------------------------------------------------------------------------------


def test_saving_over_the_files_that_the_model_is_mapped_from(checkpoint: Path) -> None:
    model = CohereForCausalLM.from_pretrained(checkpoint)
    expected = logits(model)
    for size in ("5GB", "20KB", "20KB", "10KB", "5GB"):
        model.save_pretrained(checkpoint, max_shard_size=size)
        assert torch.equal(logits(model), expected)
        model = CohereForCausalLM.from_pretrained(checkpoint)
        assert torch.equal(logits(model), expected)
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_a_failed_save_changes_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    model = CohereForCausalLM.from_pretrained(checkpoint, logit_scale=3.0)

    def full_disk(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(save, "write_aligned", full_disk)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(checkpoint)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_what_is_written_beside_the_weights(tmp_path: Path) -> None:
    model = tiny().to(torch.float16)
    assert model.generation_config is not None
    model.generation_config.max_new_tokens = 9
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["CohereForCausalLM"]
    assert values["dtype"] == "float16"
    assert model.config.architectures is None
    again = CohereForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config
    (tmp_path / "generation_config.json").unlink()
    without = CohereForCausalLM.from_pretrained(tmp_path)
    assert without.generation_config == GenerationConfig(pad_token_id=0, bos_token_id=5, eos_token_id=7)


def test_a_state_dict_in_place_of_the_models_own(checkpoint: Path) -> None:
    model = tiny()
    doubled = {name: tensor * 2 for name, tensor in CohereModel(model.config).state_dict().items()}
    CohereModel(model.config).save_pretrained(checkpoint, state_dict=doubled)
    assert torch.equal(load_file(checkpoint / "model.safetensors")["norm.weight"], doubled["norm.weight"])


# -- the hub -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    yield from hub_in_place(monkeypatch)


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_from_the_hub_and_then_offline(hub: HubStandIn, tmp_path: Path, size: str) -> None:
    model = tiny()
    assert model.generation_config is not None
    model.generation_config.max_new_tokens = 9
    model.save_pretrained(tmp_path / "served", max_shard_size=size)
    hub.add_folder("crew/ship", tmp_path / "served", token="hf_secret")
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "token": "hf_secret"}
    loaded = CohereForCausalLM.from_pretrained("crew/ship", **options)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.generation_config == model.generation_config
    assert loaded.config.name_or_path == "crew/ship"
    # "/" is asked whether the hub answers at all, which needs no rights
    assert {authorization for _, path, authorization in hub.requests if path != "/"} == {"Bearer hf_secret"}
    asked = len(hub.requests)
    offline = CohereForCausalLM.from_pretrained("crew/ship", local_files_only=True, **options)
    assert torch.equal(logits(offline), logits(model))
    assert len(hub.requests) == asked


def test_configuration_and_weights_are_of_one_commit(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody pushes after the configuration was read: the weights are still those that belong to it."""
    tiny().save_pretrained(tmp_path / "served")
    repository = hub.add_folder("crew/ship", tmp_path / "served")
    tiny(logit_scale=2.0, initializer_range=0.5).save_pretrained(tmp_path / "pushed")
    pushed = {path.name: path.read_bytes() for path in (tmp_path / "pushed").iterdir()}
    repository.commits[OLDER] = pushed
    read = CohereConfig.from_pretrained

    def read_then_push(*args: Any, **options: Any) -> CohereConfig:
        config = read(*args, **options)
        repository.names["main"] = OLDER
        return config

    monkeypatch.setattr(CohereConfig, "from_pretrained", read_then_push)
    model = CohereForCausalLM.from_pretrained("crew/ship", cache_dir=tmp_path / "cache")
    assert torch.equal(logits(model), logits(tiny()))
    monkeypatch.undo()


def test_revision_and_subfolder_on_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "served" / "sub", max_shard_size="20KB")
    hub.add_folder("crew/ship", tmp_path / "served").names = {"v1": MAIN}
    with pytest.raises(CheckpointNotFoundError, match="no revision"):
        CohereForCausalLM.from_pretrained("crew/ship", subfolder="sub", cache_dir=tmp_path / "cache")
    model = CohereForCausalLM.from_pretrained("crew/ship", subfolder="sub", revision="v1", cache_dir=tmp_path / "cache")
    assert torch.equal(logits(model), logits(tiny()))


def test_pickles_on_the_hub_are_not_even_downloaded(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    CohereConfig(**TINY).save_pretrained(tmp_path / "served")
    (tmp_path / "served" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    hub.add_folder("crew/ship", tmp_path / "served")
    with pytest.raises(CheckpointUnsafeError, match=r"pytorch_model.bin"):
        CohereForCausalLM.from_pretrained("crew/ship", cache_dir=tmp_path / "cache")
    assert not any("pytorch_model" in path for path in hub.paths("GET"))
