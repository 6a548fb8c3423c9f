"""What may be asked of from_pretrained and save_pretrained, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    UnsupportedOptionError,
)
from quarterdeck.model import CohereForCausalLM, CohereModel
from test_pretrained import IDS, TINY, logits, tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bfloat16")
    tiny().to(torch.bfloat16).save_pretrained(folder)
    return folder


def load(checkpoint: Path, **options: Any) -> CohereForCausalLM:
    return CohereForCausalLM.from_pretrained(checkpoint, **options)


# -- types and devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"torch_dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float16}, torch.float16),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "torch.float64"}, torch.float64),
        ({"dtype": torch.bfloat16, "torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.float16, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": "auto", "torch_dtype": "auto"}, torch.bfloat16),
    ],
)
def test_types(checkpoint: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = load(checkpoint, **options)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.dtype == model.config.dtype == dtype
    assert model(IDS).logits.dtype == dtype


def test_auto_asks_the_first_weight_if_the_configuration_says_nothing(tmp_path: Path) -> None:
    tiny().to(torch.float16).save_pretrained(tmp_path)
    config = CohereConfig.from_pretrained(tmp_path)
    config.dtype = None
    assert load(tmp_path, config=config, dtype="auto").dtype == torch.float16


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "floaty", "auto8"])
def test_types_that_no_model_can_have(checkpoint: Path, dtype: Any) -> None:
    with pytest.raises((InputError, ConfigError), match=r"dtype is .* floating type"):
        load(checkpoint, dtype=dtype)


def test_two_types_at_once(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="are one option"):
        load(checkpoint, dtype="float16", torch_dtype="bfloat16")
    with pytest.raises(InputError, match="are one option"):
        load(checkpoint, dtype="auto", torch_dtype=torch.float32)


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu"), {"": "cpu"}, None, "cpu:0"])
def test_one_device(checkpoint: Path, place: Any) -> None:
    assert load(checkpoint, device_map=place).device.type == "cpu"


def test_a_device_that_there_is_not(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="device_map is 'engine room', which is no device"):
        load(checkpoint, device_map="engine room")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device here"):
            load(checkpoint, device_map="cuda:0")
        with pytest.raises(InputError, match="device_map is 0"):
            load(checkpoint, device_map=0)


def test_the_default_type_is_heeded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        models = [load(checkpoint), CohereForCausalLM._from_config(CohereConfig(**TINY))]
        assert load(checkpoint, dtype="float32").dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    for model in models:
        assert {parameter.dtype for parameter in model.parameters()} == {model.config.dtype} == {torch.bfloat16}


def test_a_meta_device_as_the_default_is_refused(checkpoint: Path) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=r"default device is 'meta'.* give device_map='cpu'"):
        load(checkpoint)
    with torch.device("meta"):
        assert torch.equal(
            load(checkpoint, device_map="cpu").lm_head.weight, load(checkpoint, device_map="cpu").lm_head.weight
        )
    model = load(checkpoint, dtype="auto", device_map="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="meta device"):
        model.save_pretrained(checkpoint)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, device_map="cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    with torch.no_grad():
        torch.testing.assert_close(model(IDS.cuda()).logits.cpu(), logits(load(checkpoint)), rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).lm_head.weight, load(checkpoint).lm_head.weight)


# -- the configuration -------------------------------------------------------------------------------------


def test_fields_of_the_configuration_by_name(checkpoint: Path) -> None:
    model = load(checkpoint, logit_scale=2.0, use_cache=False)
    assert model.config.logit_scale == 2.0
    assert not model.config.use_cache
    torch.testing.assert_close(logits(model), logits(load(checkpoint)) * 32)


def test_what_is_no_field_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="logit_scal"):
        load(checkpoint, logit_scal=2.0)
    with pytest.raises(UnsupportedOptionError, match="logit_scal"):
        load(checkpoint, config=CohereConfig(**TINY), logit_scal=2.0)


def test_a_configuration_in_place_of_the_checkpoints(checkpoint: Path) -> None:
    config = CohereConfig(**TINY, logit_scale=2.0)
    model = load(checkpoint, config=config)
    assert model.config.logit_scale == 2.0
    assert model.config is not config
    assert config.dtype is None
    assert load(checkpoint, config=config, logit_scale=3.0).config.logit_scale == 3.0
    assert load(checkpoint, config=checkpoint).config.logit_scale == 0.0625


def test_a_configuration_and_weights_and_no_name() -> None:
    model = tiny()
    again = CohereForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(InputError, match="neither a checkpoint's name nor a config"):
        CohereForCausalLM.from_pretrained(None, state_dict=model.state_dict())
    with pytest.raises(InputError, match="neither a checkpoint's name nor a state_dict"):
        CohereForCausalLM.from_pretrained(None, config=model.config)


def test_weights_in_place_of_the_checkpoints(checkpoint: Path) -> None:
    model = load(checkpoint, state_dict=tiny().state_dict())
    assert torch.equal(logits(model), logits(tiny()))


def test_attention(checkpoint: Path) -> None:
    assert load(checkpoint, attn_implementation="eager").config.attn_implementation == "eager"
    with pytest.raises(UnsupportedOptionError, match="periscope"):
        load(checkpoint, attn_implementation="periscope")
    model = load(checkpoint)
    model.set_attn_implementation("eager")
    assert model.model.config.attn_implementation == "eager"
    with pytest.raises(UnsupportedOptionError, match="periscope"):
        model.set_attn_implementation("periscope")
    with pytest.raises(ConfigError, match=r"the key 'text_config', but .* one name for the whole model"):
        model.set_attn_implementation({"text_config": "sdpa"})
    assert model.config.attn_implementation == "eager"
    model.set_attn_implementation({"": "sdpa"})
    assert model.config.attn_implementation == "sdpa"


def test_a_constructor_wants_a_configuration(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="from_pretrained"):
        CohereForCausalLM(str(checkpoint))  # type: ignore[arg-type]


def test_an_untrained_model_of_a_configuration() -> None:
    config = CohereConfig(**TINY)
    model = CohereForCausalLM._from_config(config, dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert config.dtype is None
    assert config.attn_implementation is None
    assert CohereForCausalLM._from_config(config).dtype == torch.float32


# -- what else transformers has ----------------------------------------------------------------------------


def test_what_is_always_done_may_be_asked_for(checkpoint: Path) -> None:
    load(checkpoint, low_cpu_mem_usage=True, use_safetensors=True, trust_remote_code=False, weights_only=True)


NONE = (
    "quantization_config load_in_8bit load_in_4bit variant max_memory offload_folder offload_state_dict "
    "offload_buffers from_tf from_flax tp_plan tp_size device_mesh distributed_config gguf_file proxies "
    "use_auth_token resume_download mirror adapter_name adapter_kwargs key_mapping generation_config use_kernels "
    "code_revision"
).split()
FALSE = (
    "load_in_8bit load_in_4bit offload_state_dict offload_buffers from_tf from_flax resume_download use_kernels".split()
)


def test_what_is_off_may_be_said_to_be_off(checkpoint: Path) -> None:
    assert torch.equal(logits(load(checkpoint, **dict.fromkeys(NONE))), logits(load(checkpoint)))
    load(checkpoint, **dict.fromkeys(FALSE, False), proxies=None)


@pytest.mark.parametrize(
    "option",
    [
        {"use_safetensors": False},
        {"use_auth_token": False},
        {"tp_plan": "auto"},
        {"trust_remote_code": True},
        {"from_tf": True},
        {"max_memory": {0: "1GB"}},
        {"offload_folder": "hold"},
        {"variant": "fp16"},
        {"use_auth_token": "x"},
    ],
)
def test_what_is_not_done_is_refused_by_name(checkpoint: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOptionError, match=f"{next(iter(option))}=.* is refused: "):
        load(checkpoint, **option)


def test_foreign_quantized_checkpoints_are_refused_before_anything_is_read(checkpoint: Path) -> None:
    config = CohereConfig(**TINY, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedOptionError, match="quantized by 'fp8' are not read"):
        load(checkpoint, config=config)


def test_saving_as_pickle_or_to_the_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="safetensors only"):
        tiny().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UnsupportedOptionError, match="hf upload"):
        tiny().save_pretrained(tmp_path, push_to_hub=True)
    assert list(tmp_path.iterdir()) == []


def test_saving_under_other_names_or_with_another_writer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="variant='fp16' is refused"):
        tiny().save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(UnsupportedOptionError, match="save_function is refused"):
        tiny().save_pretrained(tmp_path, save_function=torch.save)
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_processes_saves(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model", is_main_process=False)
    assert list(tmp_path.iterdir()) == []
    tiny().save_pretrained(tmp_path / "model", is_main_process=True, variant=None, save_function=None)
    assert torch.equal(logits(load(tmp_path / "model")), logits(tiny()))


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match=r"model' is a file; give a folder"):
        tiny().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_weights_in_whole_numbers_are_named(tmp_path: Path) -> None:
    tensors = tiny().state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    tiny().save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(CheckpointMismatchError, match=rf"{name} is stored as int8, .*quantization_config"):
        load(tmp_path)


def test_a_model_without_a_padding_token(tmp_path: Path) -> None:
    model = tiny(pad_token_id=-1, eos_token_id=[7, -1])
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (-1, None)
    assert model.generation_config.eos_token_id == [7]
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).generate(IDS, max_new_tokens=3), model.generate(IDS, max_new_tokens=3))


def test_a_value_of_the_configuration_that_generation_refuses_is_sought_there() -> None:
    with pytest.raises(InputError, match=r"top_p.*\(The value comes from the model's configuration.\)"):
        tiny(top_p=1.5)


def test_a_subfolder(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "sub", max_shard_size="20KB")
    assert torch.equal(logits(load(tmp_path, subfolder="sub")), logits(tiny()))
    with pytest.raises(CheckpointNotFoundError):
        load(tmp_path)


def test_no_warning_is_given(checkpoint: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(checkpoint)


# -- training ----------------------------------------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = tiny().train()
    assert not model.is_gradient_checkpointing
    gradients = []
    for switch in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
        switch()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert model.is_gradient_checkpointing
    assert model.model.gradient_checkpointing_kwargs == {"use_reentrant": True}
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(UnsupportedOptionError, match=r"there is no nonsense; torch's checkpoint takes .*use_reentrant"):
        model.gradient_checkpointing_enable({"nonsense": True})
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable({"preserve_rng_state": False, "use_reentrant": False})
    model(IDS, labels=IDS).loss.backward()


def test_inputs_can_require_gradients_over_a_frozen_embedding() -> None:
    model = tiny()
    model.requires_grad_(False)
    assert not model(IDS).logits.requires_grad
    model.enable_input_require_grads()
    model.enable_input_require_grads()
    assert model(IDS).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(IDS).logits.requires_grad


def test_counting() -> None:
    model = tiny()
    embedding = 96 * 32
    everything = sum(tensor.numel() for name, tensor in model.state_dict().items() if name != "lm_head.weight")
    assert model.num_parameters() == everything
    assert model.num_parameters(exclude_embeddings=True) == everything - embedding
    assert tiny(tie_word_embeddings=False).num_parameters() == everything + embedding
    model.model.norm.weight.requires_grad = False
    assert model.num_parameters(only_trainable=True) == everything - 32
    assert model.get_memory_footprint() == 4 * everything
    assert CohereModel(CohereConfig(**TINY)).num_parameters() == everything
    assert model.base_model is model.model
    assert model.model.base_model is model.model
    assert CohereForCausalLM.can_generate()
    assert not CohereModel.can_generate()
    assert model.model.generation_config is None


def test_fresh_weights() -> None:
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**TINY, use_qk_norm=True, attention_bias=True, initializer_range=0.5))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.unique().tolist() == [1.0], name
        elif name.endswith("bias"):
            assert parameter.unique().tolist() == [0.0], name
        else:
            assert 0.4 < parameter.std() < 0.6, name
    assert not model.model.embed_tokens.weight[0].any()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    nn.init.constant_(model.model.norm.weight, 3.0)
    model.init_weights()
    assert model.model.norm.weight.unique().tolist() == [1.0]


def test_loading_does_not_import_the_compiler(checkpoint: Path) -> None:
    """Random numbers on the meta device would: a second and more, where a small model takes hundredths of one."""
    code = (
        "import sys; from quarterdeck.model import CohereForCausalLM; "
        "CohereForCausalLM.from_pretrained(sys.argv[1]); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(checkpoint)]).returncode == 0
