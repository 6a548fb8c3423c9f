"""Weights held by bitsandbytes: the same numbers and the same files as in transformers, in both directions."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from parity import TINY, assert_close, random_ids, randomise
from quarterdeck import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, CohereModel
from quarterdeck.errors import CheckpointMismatchError, InputError, MissingPackageError, UnsupportedOptionError
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig

transformers = pytest.importorskip("transformers", reason="the peer that results are compared with")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="the library that holds the weights")

FIELDS = TINY | {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
WAYS: dict[str, dict[str, Any]] = {
    "fp4": {"load_in_4bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bfloat16": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
    "int8 without outliers": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
IDS = random_ids(2, 11)


def write(folder: Path, **changes: Any) -> Path:
    model = CohereForCausalLM(CohereConfig(**(FIELDS | changes)))
    randomise(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), attention_bias=True, use_qk_norm=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


def theirs(folder: Path, **options: Any) -> Any:
    config = options.pop("quantization_config", None)
    if config is not None:
        options["quantization_config"] = transformers.BitsAndBytesConfig(**config)
    return transformers.CohereForCausalLM.from_pretrained(folder, **options).eval()


def ours(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> CohereForCausalLM:
    chosen = None if config is None else BitsAndBytesConfig(**config)
    return CohereForCausalLM.from_pretrained(folder, quantization_config=chosen, **options)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(IDS).logits
    return result


def stored(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle is no dictionary)


@pytest.mark.parametrize(
    ("way", "dtype"), [*((way, torch.float32) for way in WAYS), ("nf4", torch.float16), ("fp4", None), ("int8", None)]
)
def test_logits_are_those_of_transformers(plain: Path, way: str, dtype: torch.dtype | None) -> None:
    peer = theirs(plain, quantization_config=WAYS[way], dtype=dtype)
    model = ours(plain, WAYS[way], dtype=dtype)
    assert model.dtype == peer.dtype == (dtype or torch.float16)
    for name, module in peer.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert type(module) is type(model.get_submodule(name)), name
    assert_close(logits(model), logits(peer), 1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("way", WAYS)
def test_files_are_interchanged_both_ways(plain: Path, tmp_path: Path, way: str) -> None:
    # transformers casts what it reads to the model's type, bits that only pretend to be floating numbers too
    options = {"dtype": torch.bfloat16 if way == "bfloat16" else torch.float32}
    peer, model = theirs(plain, quantization_config=WAYS[way], **options), ours(plain, WAYS[way], **options)
    peer.save_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")
    again = ours(tmp_path / "theirs", **options)
    assert again.config.quantization_config == model.config.quantization_config
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(theirs(tmp_path / "ours", **options)), logits(theirs(tmp_path / "theirs", **options)))


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # some are floating types by name only


def assert_same_files(one: Path, other: Path) -> None:
    left, right = stored(one), stored(other)
    assert left.keys() == right.keys()
    for name in left:
        if "quant_state" not in name:
            assert left[name].dtype == right[name].dtype, name
            assert torch.equal(as_bytes(left[name]), as_bytes(right[name])), name
    configs = [json.loads((folder / "config.json").read_text())["quantization_config"] for folder in (one, other)]
    public = {key: value for key, value in configs[1].items() if not key.startswith("_")}
    assert configs[0] == public


def test_shards_and_a_second_save_hold_the_same(plain: Path, tmp_path: Path) -> None:
    # saved before it is used: on CPUs with AVX-512 BF16 the library rounds the scales at the first use
    model = ours(plain, WAYS["double"], dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again = ours(tmp_path / "shards", dtype=torch.float32)
    again.save_pretrained(tmp_path / "second")
    third = ours(tmp_path / "second", dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(third), logits(model))


def test_a_decoder_is_read_from_a_model_with_a_head_and_the_other_way(plain: Path, tmp_path: Path) -> None:
    model = ours(plain, WAYS["nf4"], dtype=torch.float32)
    model.save_pretrained(tmp_path / "whole")
    decoder = CohereModel.from_pretrained(tmp_path / "whole")
    decoder.save_pretrained(tmp_path / "decoder")
    with torch.no_grad():
        expected = model.model(IDS).last_hidden_state
        assert torch.allclose(decoder(IDS).last_hidden_state.float(), expected, atol=0.05)  # it is in float16
    whole = ours(tmp_path / "decoder", dtype=torch.float16)
    assert torch.equal(logits(whole), logits(ours(tmp_path / "whole", dtype=torch.float16)))


@pytest.mark.parametrize("names", [None, ["lm_head"], ["up_proj"], ["model.layers.0", "model.layers.1.mlp.down_proj"]])
def test_the_same_modules_are_left_alone(untied: Path, names: list[str] | None) -> None:
    config = {"load_in_4bit": True, "llm_int8_skip_modules": names}
    peer, model = theirs(untied, quantization_config=config), ours(untied, config)
    kinds = {name: type(module) for name, module in peer.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name: type(model.get_submodule(name)) for name in kinds} == kinds
    assert bitsandbytes.nn.Linear4bit in kinds.values()


def test_a_tied_head_is_never_quantized(plain: Path) -> None:
    model = ours(plain, {"load_in_4bit": True, "llm_int8_skip_modules": ["up_proj"]})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float16


def test_what_the_model_tells(plain: Path) -> None:
    peer, model = theirs(plain, quantization_config=WAYS["nf4"]), ours(plain, WAYS["nf4"])
    assert (model.is_loaded_in_4bit, model.is_loaded_in_8bit, model.is_quantized) == (True, False, True)
    tables = sum(buffer.nbytes for buffer in peer.buffers())  # rotary frequencies, which are no buffer here
    assert model.get_memory_footprint() == peer.get_memory_footprint() - tables
    assert model.num_parameters() == peer.num_parameters() == CohereForCausalLM.from_pretrained(plain).num_parameters()
    assert not CohereForCausalLM.from_pretrained(plain).is_quantized


def test_older_arguments(plain: Path) -> None:
    expected = ours(plain, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    model = AutoModelForCausalLM.from_pretrained(
        plain, load_in_4bit=True, bnb_4bit_quant_type="nf4", device_map="auto", load_in_8bit=False
    )
    assert model.config.quantization_config == expected.config.quantization_config
    assert torch.equal(logits(model), logits(expected))
    assert CohereForCausalLM.from_pretrained(plain, load_in_8bit=True).is_loaded_in_8bit
    with pytest.raises(InputError, match="set them there only"):
        CohereForCausalLM.from_pretrained(plain, load_in_4bit=True, quantization_config="int4")
    with pytest.raises(InputError, match="load_in_8bit is 0, but must be True or False"):
        CohereForCausalLM.from_pretrained(plain, load_in_8bit=0)
    with pytest.raises(UnsupportedOptionError, match="bnb_4bit_quant_type"):
        CohereForCausalLM.from_pretrained(plain, bnb_4bit_quant_type="nf4")


def test_generation_is_that_of_transformers(plain: Path) -> None:
    options = {"max_new_tokens": 8, "do_sample": False}
    mask = torch.ones_like(IDS)
    peer = theirs(plain, quantization_config=WAYS["nf4"], dtype=torch.float32)
    model = ours(plain, WAYS["nf4"], dtype=torch.float32)
    expected = peer.generate(IDS, attention_mask=mask, cache_implementation="static", **options)
    assert torch.equal(model.generate(IDS, attention_mask=mask, cache_implementation="static", **options), expected)


@pytest.mark.parametrize("way", ["nf4", "double", "int8"])
def test_dequantized_weights_are_those_of_transformers(plain: Path, way: str) -> None:
    peer = theirs(plain, quantization_config=WAYS[way], dtype=torch.float32)
    model = ours(plain, WAYS[way], dtype=torch.float32)
    back = model.dequantize()
    assert back is model
    assert not model.is_quantized
    assert not hasattr(model.config, "quantization_config")
    expected = peer.dequantize().state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-6, atol=0) for name in found)


def test_a_gradient_reaches_the_input(plain: Path) -> None:
    model = ours(plain, WAYS["nf4"], dtype=torch.float32)
    full = ours(plain, WAYS["nf4"], dtype=torch.float32).dequantize()
    grads = []
    for one in (model, full):
        x = one.model.embed_tokens(IDS).detach().requires_grad_()
        one(inputs_embeds=x).logits.sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-3)


def test_another_type_is_refused(plain: Path) -> None:
    model = ours(plain, WAYS["nf4"])
    for cast in (lambda: model.to(torch.bfloat16), model.float, lambda: model.model.double()):
        with pytest.raises(InputError, match="cannot be cast to another type"):
            cast()
    assert model.to("cpu").half() is model
    assert torch.isfinite(logits(model)).all()


def test_without_the_library(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError("there is none")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"quarterdeck\[bitsandbytes\]"):
        ours(plain, WAYS["fp4"])


def test_weights_that_are_quantized_stay_as_they_are(plain: Path, tmp_path: Path) -> None:
    ours(plain, WAYS["nf4"]).save_pretrained(tmp_path)
    faster = ours(tmp_path, WAYS["nf4"] | {"bnb_4bit_compute_dtype": torch.bfloat16})
    assert faster.config.quantization_config.bnb_4bit_compute_dtype == torch.bfloat16
    with pytest.raises(InputError, match="bnb_4bit_quant_type='nf4', and cannot be had with 'fp4'"):
        ours(tmp_path, WAYS["fp4"])
    with pytest.raises(InputError, match="quantized already"):
        CohereForCausalLM.from_pretrained(tmp_path, quantization_config="int4")


def test_parts_that_are_missing_are_named(plain: Path, tmp_path: Path) -> None:
    for way, part in (("double", "weight.nested_absmax"), ("int8", "SCB")):
        model = ours(plain, WAYS[way])
        tensors = model.state_dict()
        del tensors[f"model.layers.1.mlp.up_proj.{part}"]
        model.save_pretrained(tmp_path / way, state_dict=tensors)
        with pytest.raises(CheckpointMismatchError, match=rf"up_proj.*({part.rpartition('.')[2]}|int8)"):
            ours(tmp_path / way)


def test_weights_in_16_bit_for_training(plain: Path, tmp_path: Path) -> None:
    config = {"load_in_8bit": True, "llm_int8_has_fp16_weight": True}
    model = ours(plain, config)
    assert torch.equal(logits(model), logits(theirs(plain, quantization_config=config)))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(ours(tmp_path)), logits(model))


def test_a_configuration_is_that_of_transformers() -> None:
    for way in [*WAYS.values(), {}]:
        expected = transformers.BitsAndBytesConfig(**way).to_dict()
        assert {**BitsAndBytesConfig(**way).to_dict()} == {k: v for k, v in expected.items() if not k.startswith("_")}
        assert BitsAndBytesConfig.from_dict(expected) == BitsAndBytesConfig(**way)
        assert (
            BitsAndBytesConfig(**way).quantization_method
            == transformers.BitsAndBytesConfig(**way).quantization_method()
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "choose one"),
        ({"load_in_4bit": 1}, "must be True or False"),
        ({"bnb_4bit_quant_type": "int4"}, "must be 'fp4' or 'nf4'"),
        ({"bnb_4bit_compute_dtype": "int99"}, "must be a torch.dtype"),
        ({"bnb_4bit_quant_storage": torch.int64}, "must be one of uint8"),
        ({"llm_int8_threshold": -1.0}, "number from 0 on"),
        ({"llm_int8_skip_modules": "lm_head"}, "list of names"),
    ],
)
def test_configurations_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BitsAndBytesConfig(**fields)


def test_unknown_fields_are_refused_by_name() -> None:
    """They are not in transformers, which notes them in its log and goes on."""
    transformers.BitsAndBytesConfig(load_in_4bits=True)
    for make in (
        lambda: BitsAndBytesConfig(load_in_4bits=True, a=1),
        lambda: BitsAndBytesConfig.from_dict({"a": 1, "load_in_4bits": True}),
    ):
        with pytest.raises(UnsupportedOptionError, match=r"has no 'a', 'load_in_4bits'; it has bnb_.*load_in_4bit"):
            make()


def test_configurations_that_ask_for_nothing_or_for_something_unknown(plain: Path) -> None:
    with pytest.raises(InputError, match="load_in_4bit=True or load_in_8bit=True"):
        ours(plain, {})
    with pytest.raises(UnsupportedOptionError, match="has no 'bits'"):
        BitsAndBytesConfig.from_dict({"bits": 4})
    with pytest.raises(InputError, match="all linears"):
        ours(plain, {"load_in_4bit": True, "llm_int8_skip_modules": ["model"]})
    with pytest.raises(InputError, match="quarterdeck's own class"):
        CohereForCausalLM.from_pretrained(plain, quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))


def test_parts_on_disk_stay_in_full_where_that_is_allowed(plain: Path, tmp_path: Path) -> None:
    device_map = {"": "cpu", "model.layers.1": "disk"}
    with pytest.raises(InputError, match=r"'model\.layers\.1' on the CPU or on disk"):
        ours(plain, WAYS["nf4"], device_map=device_map)
    config = WAYS["nf4"] | {"llm_int8_enable_fp32_cpu_offload": True}
    model = ours(plain, config, dtype=torch.float32, device_map=device_map, offload_folder=tmp_path)
    kinds = [type(layer.mlp.up_proj) for layer in model.model.layers]
    assert kinds == [bitsandbytes.nn.Linear4bit, torch.nn.Linear]
    whole = ours(plain, WAYS["nf4"] | {"llm_int8_skip_modules": ["model.layers.1"]}, dtype=torch.float32)
    assert torch.equal(logits(model), logits(whole))
    with pytest.raises(InputError, match="the model does not fit"):
        ours(plain, config, device_map="sequential", max_memory={"cpu": 40_000, "disk": "1GB"}, offload_folder=tmp_path)


def test_the_bytes_that_are_planned_are_those_that_are_taken(plain: Path) -> None:
    for way in ("nf4", "int8"):
        linear = ours(plain, WAYS[way]).model.layers[0].mlp.up_proj
        parts = {name: tensor for name, tensor in linear.state_dict().items() if "quant_" not in name}
        assert linear.placed_bytes() == sum(tensor.nbytes for tensor in parts.values() if tensor.ndim)


def test_widths_that_are_no_whole_blocks(tmp_path: Path) -> None:
    """On CPUs with AVX-512 BF16 the library's own layout fails for these; it is not used for them."""
    folder = write(tmp_path, intermediate_size=96)
    model = ours(folder, WAYS["nf4"], dtype=torch.float32)
    found = logits(model)
    assert_close(found, logits(model.dequantize()), 0.02)  # other linears are computed in bfloat16 there
