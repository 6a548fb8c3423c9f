"""Quantized checkpoints: quantizing while loading, saving, and loading what was saved without touching it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from parity import make_ours, random_ids
from quarterdeck import (
    LLM,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    CohereModel,
    QuantizationConfig,
    pipeline,
)
from quarterdeck.errors import CheckpointMismatchError, InputError
from quarterdeck.kernels import native
from quarterdeck.quantization.surgery import quantize_model, replace_modules

CONFIGS = {
    "int8": QuantizationConfig(format="int8"),
    "int4": QuantizationConfig(),
    "asymmetric": QuantizationConfig(symmetric=False),
}
IDS = random_ids(2, 9)
MB = 10**6


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(IDS).logits
    return result


@pytest.fixture(scope="module", params=["tied", "untied"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    make_ours(hidden_size=64, tie_word_embeddings=request.param == "tied").save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> CohereForCausalLM:
    return CohereForCausalLM.from_pretrained(folder, **options)


def same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("way", CONFIGS)
def test_quantizing_while_loading_is_quantizing_afterwards(plain: Path, way: str) -> None:
    model = load(plain, quantization_config=CONFIGS[way])
    assert same_tensors(model, quantize_model(load(plain), CONFIGS[way]))
    assert model.quantization == CONFIGS[way]
    assert not model.training


@pytest.mark.parametrize("size", ["5GB", "10KB"])
@pytest.mark.parametrize("way", CONFIGS)
def test_what_is_saved_is_what_is_loaded(plain: Path, tmp_path: Path, way: str, size: str) -> None:
    model = load(plain, quantization_config=CONFIGS[way])
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "10KB")
    again = load(tmp_path)
    assert same_tensors(again, model)
    assert again.quantization == CONFIGS[way]
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path)  # over the files that it is mapped from
    assert same_tensors(load(tmp_path), model)


def test_the_first_pair_that_fits_counts_after_saving_too(plain: Path, tmp_path: Path) -> None:
    """A JSON object would be written with its names sorted, and the pair for the whole layer come first."""
    config = QuantizationConfig(module_formats=(("up_proj", "int8"), ("model.layers.0", "int4-asymmetric")))
    model = load(plain, quantization_config=config)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.quantization == config
    assert str(again.model.layers[0].mlp.up_proj.form) == "int8"
    assert same_tensors(again, model)


def test_a_checkpoint_holds_each_weight_once_under_documented_names(plain: Path, tmp_path: Path) -> None:
    tied = load(plain).config.tie_word_embeddings
    load(plain, quantization_config=CONFIGS["asymmetric"]).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert not any(name.endswith("_proj.weight") for name in names)
    parts = {"weight_packed", "weight_scale", "weight_minimum"}
    assert {f"model.layers.0.mlp.up_proj.{part}" for part in parts} <= names
    assert {f"lm_head.{part}" for part in parts} & names == (set() if tied else {f"lm_head.{part}" for part in parts})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["quantization_config"] == CONFIGS["asymmetric"].to_dict()
    assert written["dtype"] == "float32"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="seen through Linux's /proc")
def test_packed_tensors_stay_windows_on_their_file(plain: Path, tmp_path: Path) -> None:
    load(plain, quantization_config="int4").save_pretrained(tmp_path)
    model = load(tmp_path)
    maps = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]
    ranges = [(int(start, 16), int(end, 16)) for start, end in maps]
    for name, tensor in model.state_dict().items():
        assert any(start <= tensor.data_ptr() < end for start, end in ranges), name


def test_types_of_models_that_are_quantized(plain: Path, tmp_path: Path) -> None:
    model = load(plain, quantization_config="int4", dtype=torch.bfloat16)
    assert model.dtype == logits(model).dtype == torch.bfloat16
    assert model.lm_head.weight_scale.dtype == torch.float16
    model.save_pretrained(tmp_path)
    assert load(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load(tmp_path).dtype == torch.float32
    assert torch.equal(logits(load(tmp_path, dtype="auto")), logits(model))


def test_a_decoder_and_a_model_with_a_head_read_each_other(plain: Path, tmp_path: Path) -> None:
    model = load(plain, quantization_config="int8")
    model.save_pretrained(tmp_path / "whole")
    decoder = CohereModel.from_pretrained(tmp_path / "whole")
    assert same_tensors(decoder, model.model)
    assert same_tensors(CohereModel.from_pretrained(plain, quantization_config="int8"), model.model)
    decoder.save_pretrained(tmp_path / "decoder")
    if model.config.tie_word_embeddings:
        assert same_tensors(load(tmp_path / "decoder"), model)


def test_a_dequantized_model_is_an_ordinary_one(plain: Path, tmp_path: Path) -> None:
    model = load(plain, quantization_config="int4").dequantize()
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_tensors(load(tmp_path), model)
    assert type(model.lm_head) is torch.nn.Linear
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_word_embeddings


def test_parts_on_the_disk(plain: Path, tmp_path: Path) -> None:
    model = load(plain, quantization_config="int4")
    model.save_pretrained(tmp_path / "int4")
    device_map = {"": "cpu", "model.layers.0": "disk"}
    for folder, options in ((tmp_path / "int4", {}), (plain, {"quantization_config": "int4"})):
        divided = load(folder, device_map=device_map, offload_folder=tmp_path / "offload", **options)
        assert torch.equal(logits(divided), logits(model))


def test_a_state_dict_and_a_configuration_say_it_all(plain: Path) -> None:
    model = load(plain, quantization_config="int4")
    again = CohereForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert same_tensors(again, model)
    # whether weights are quantized already is seen by the tensors
    assert same_tensors(CohereForCausalLM.from_pretrained(plain, config=model.config), model)


def test_weights_that_are_quantized_cannot_be_quantized_otherwise(plain: Path, tmp_path: Path) -> None:
    load(plain, quantization_config="int4").save_pretrained(tmp_path)
    assert load(tmp_path, quantization_config="int4").is_quantized
    for other in ("int8", CONFIGS["asymmetric"]):
        with pytest.raises(InputError, match="quantized already"):
            load(tmp_path, quantization_config=other)


def test_parts_of_another_type_or_shape_or_none(plain: Path, tmp_path: Path) -> None:
    model = load(plain, quantization_config="int8")
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors = model.state_dict()
    for bad, message in (
        (tensors[name].half(), r"weight_scale is stored as torch.float16, but must be torch.float32"),
        (tensors[name][1:], "of another shape"),
        (None, "missing in the checkpoint"),
    ):
        changed = {key: value for key, value in tensors.items() if key != name or bad is not None}
        if bad is not None:
            changed[name] = bad
        with pytest.raises(CheckpointMismatchError, match=message):
            CohereForCausalLM.from_pretrained(None, config=model.config, state_dict=changed)
    whole = make_ours(hidden_size=64).state_dict()
    whole["model.norm.weight"] = whole["model.norm.weight"]
    whole["model.layers.0.mlp.up_proj.weight"] = whole["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    with pytest.raises(CheckpointMismatchError, match="must be of a floating type to be quantized"):
        CohereForCausalLM.from_pretrained(
            None, config=make_ours(hidden_size=64).config, state_dict=whole, quantization_config="int4"
        )


def test_everything_around_takes_quantized_models() -> None:
    model = AutoModelForCausalLM.from_pretrained("midshipman", quantization_config="int8")
    generate = pipeline("text-generation", model_kwargs={"quantization_config": "int8"}, dtype=torch.float32)
    assert same_tensors(generate.model, model)
    llm = LLM(quantization="int8", dtype=torch.float32)
    assert same_tensors(llm.model, model)
    assert llm.generate("Plants create energy").text


# -- memory ------------------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "vocab_size": 4000,
    "hidden_size": 1024,
    "intermediate_size": 5120,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "eos_token_id": 7,
}
LARGEST = 4 * 1024 * 5120
SLACK = 32 * MB  # float32 copies of the million weights that are rounded at once, Python, the allocator
SCRIPT = """
import json, sys
from quarterdeck.model import CohereForCausalLM

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024

def measure(folder, options):
    CohereForCausalLM.from_pretrained("midshipman", dtype="auto", **options)  # what is set up at the first use
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    model = CohereForCausalLM.from_pretrained(folder, dtype="auto", **options)
    return model, {"peak": status("VmHWM") - before, "bytes": model.get_memory_footprint()}

folder = sys.argv[1]
model, rounded = measure(folder + "/plain", {"quantization_config": "int4"})
model.save_pretrained(folder + "/int4")
stored = measure(folder + "/int4", {})[1]
print(json.dumps({"rounded": rounded, "stored": stored}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through Linux's /proc")
def test_the_peak_is_the_quantized_model_and_one_tensor(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = CohereForCausalLM(CohereConfig(**FIELDS)).to(torch.bfloat16)
    empty = {name: torch.empty_like(tensor, device="cpu") for name, tensor in model.state_dict().items()}
    weights = {name: tensor.normal_() for name, tensor in empty.items() if name != "lm_head.weight"}  # it is tied
    model.save_pretrained(tmp_path / "plain", state_dict=weights)
    whole = model.get_memory_footprint()
    replace_modules(model, CONFIGS["int4"])
    size = model.get_memory_footprint()
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["stored"]["bytes"] == measured["rounded"]["bytes"] == size
    assert size + LARGEST // 2 + SLACK < whole
    assert measured["rounded"]["peak"] < size + LARGEST // 2 + SLACK
    assert measured["stored"]["peak"] < 16 * MB  # nothing is read


def test_loading_without_the_native_library_is_said_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "levels", lambda: ("portable",))
    CohereForCausalLM.from_pretrained("midshipman", quantization_config="int8")
    assert not caplog.records
    monkeypatch.setattr(native, "levels", lambda: ())
    CohereForCausalLM.from_pretrained("midshipman")
    assert not caplog.records
    CohereForCausalLM.from_pretrained("midshipman", quantization_config="int4")
    assert [record.name.partition(".")[0] for record in caplog.records] == ["quarterdeck"]
    assert "`quarterdeck env`" in caplog.text
