"""Quantized models divided among places: packed weights go to the disk as they are, and visit for each use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import make_ours, random_ids
from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.errors import InputError
from quarterdeck.quantization.loading import prepare
from quarterdeck.weights.placement import plan_device_map

FIELDS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "attention_bias": True}
IDS = random_ids(2, 7)
MAPS: dict[str, dict[str, Any]] = {
    "layers": {"": "cpu", "model.layers.0": "disk", "model.layers.2": "disk"},
    "tables": {"": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"},
    "all": {"": "disk"},
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    make_ours(std=0.1, **FIELDS).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantized_while_loading_and_put_away(full: Path, tmp_path: Path, form: str, name: str) -> None:
    whole = CohereForCausalLM.from_pretrained(full, quantization_config=form)
    with pytest.raises(InputError, match=r"is to be on the disk, .*: give offload_folder"):
        CohereForCausalLM.from_pretrained(full, quantization_config=form, device_map=MAPS[name])
    model = CohereForCausalLM.from_pretrained(
        full, quantization_config=form, device_map=MAPS[name], offload_folder=tmp_path / "hold"
    )
    assert [buffer for buffer in model.buffers() if buffer.is_meta]
    for _ in range(2):
        assert torch.equal(logits(model), logits(whole))
        assert model.get_memory_footprint() == whole.get_memory_footprint()
    model.save_pretrained(tmp_path / "saved")
    again = CohereForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.is_quantized
    assert torch.equal(logits(again), logits(whole))


@pytest.mark.parametrize("name", MAPS)
def test_a_quantized_checkpoint_is_read_where_it_is(full: Path, tmp_path: Path, name: str) -> None:
    whole = CohereForCausalLM.from_pretrained(full, quantization_config="int8")
    whole.save_pretrained(tmp_path / "packed")
    model = CohereForCausalLM.from_pretrained(tmp_path / "packed", device_map=MAPS[name])
    assert torch.equal(logits(model), logits(whole))
    assert model._offloaded is not None
    assert model._offloaded.paths() == {tmp_path / "packed" / "model.safetensors"}
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(CohereForCausalLM.from_pretrained(tmp_path / "saved")), logits(whole))


def test_packed_weights_count_with_their_own_bytes() -> None:
    config = CohereConfig(**{"vocab_size": 1000, "num_attention_heads": 4, "eos_token_id": 7, **FIELDS})
    plain, packed = CohereForCausalLM._on_meta(config), CohereForCausalLM._on_meta(config)
    quantized = CohereForCausalLM.from_pretrained(
        None, config=config, state_dict=CohereForCausalLM(config).state_dict(), quantization_config="int8"
    ).quantization
    assert quantized is not None
    prepare(packed, quantized, {}, prefix="model.", dtype=torch.float32)
    packed.tie_weights()
    size = packed.get_memory_footprint()
    assert size < plain.get_memory_footprint() // 2
    enough: dict[int | str, int] = {0: size + 10_000, "cpu": 10**9}
    assert plan_device_map(packed, "sequential", max_memory=enough, dtype=torch.float32) == {"": 0}
    assert plan_device_map(plain, "sequential", max_memory=enough, dtype=torch.float32) != {"": 0}
    for share in range(1, 10):
        some: dict[int | str, int] = {0: size * share // 10, 1: size // 2, "cpu": 10**9}
        planned = plan_device_map(packed, "sequential", max_memory=some, dtype=torch.float32)
        table = planned.get("model.embed_tokens", planned.get("model", planned.get("")))
        assert planned.get("lm_head", planned.get("")) == table


def test_weights_of_bitsandbytes_count_with_their_bits() -> None:
    library = pytest.importorskip("bitsandbytes")
    with torch.device("meta"):
        kinds: dict[str, nn.Module] = {
            "full": nn.Linear(1000, 1000, bias=False),
            "eight": library.nn.Linear8bitLt(1000, 1000, bias=False, has_fp16_weights=False),
            "four": library.nn.Linear4bit(1000, 1000, bias=False),
        }
    for kind, size in (("full", 4_000_000), ("eight", 1_000_000), ("four", 500_000)):
        model = nn.ModuleDict({"only": kinds[kind]})
        for room, place in ((2 * size + 100, 0), (size - 100, "cpu")):
            memory: dict[int | str, int] = {0: room, "cpu": 10**9}
            assert plan_device_map(model, "sequential", max_memory=memory, dtype=torch.float32) == {"only": place}
