"""Weights in 8 and 4 bits: what takes the places of linears computes what plain linears with those weights compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from parity import make_ours, random_ids, relative_error
from quarterdeck import AutoModelForCausalLM, CohereForCausalLM, QuantizationConfig
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.kernels.rows import quantize_rows
from quarterdeck.quantization.choose import as_quantization
from quarterdeck.quantization.formats import Int4Format, Int8Format, Int8GroupFormat, PackedFormat, round_weight
from quarterdeck.quantization.modules import QuantizedEmbedding, QuantizedLinear, packed_modules
from quarterdeck.quantization.surgery import dequantize_model, quantize_model

CONFIGS = {
    "int8": QuantizationConfig(format="int8"),
    "int4": QuantizationConfig(),
    "asymmetric": QuantizationConfig(symmetric=False),
    "int8-32": QuantizationConfig("int8", group_size=32),
    "asymmetric-32": QuantizationConfig(symmetric=False, group_size=32),
}
FORMS: dict[str, PackedFormat] = {
    "int8": Int8Format(),
    "int4": Int4Format(symmetric=True),
    "asymmetric": Int4Format(symmetric=False),
    "int8-32": Int8GroupFormat(),
    "asymmetric-32": Int4Format(symmetric=False, group=32),
}
IDS = random_ids(2, 9)
CPU = torch.device("cpu")


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    result: Tensor = model(ids).logits
    return result


def packed_linear(form: PackedFormat, rows: int, columns: int, *, bias: bool = False) -> tuple[QuantizedLinear, Tensor]:
    """A module and the weight that it stands for."""
    torch.manual_seed(3)
    parameter = nn.Parameter(torch.randn(rows)) if bias else None
    module = QuantizedLinear(form, rows, columns, parameter)
    module.set_weight(torch.randn(rows, columns), CPU)
    return module, module.dequantized(torch.float32)


def rounded(x: Tensor) -> Tensor:
    """Activations as the kernels round them."""
    values, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
    return (values.float() * scale[:, None]).view_as(x)


# -- modules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64, 128), (17, 70), (1, 5), (33, 64)])
@pytest.mark.parametrize("form", FORMS)
def test_a_linear_is_a_plain_one_with_its_weight(form: str, shape: tuple[int, int], bias: bool) -> None:
    module, weight = packed_linear(FORMS[form], *shape, bias=bias)
    x = torch.randn(2, 3, shape[1])
    expected = functional.linear(rounded(x), weight, module.bias)
    with torch.no_grad():
        assert relative_error(module(x), expected) < 1e-5
        assert module(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_an_embedding_is_a_plain_one_with_its_weight(form: str) -> None:
    module = QuantizedEmbedding(FORMS[form], 21, 70, 0, torch.float16)
    module.set_weight(torch.randn(21, 70), CPU)
    ids = torch.tensor([[0, 20, 7], [7, 7, 16]])
    assert torch.equal(module(ids), functional.embedding(ids, module.dequantized(torch.float16)))


@pytest.mark.parametrize("form", FORMS)
def test_large_weights_are_rounded_in_parts(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(85, 70)
    whole = round_weight(FORMS[form], weight)
    monkeypatch.setattr("quarterdeck.quantization.formats._CHUNK", 70 * 32)
    parts = round_weight(FORMS[form], weight)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_weight_that_is_held(form: str) -> None:
    module, weight = packed_linear(FORMS[form], 24, 70, bias=True)
    assert module.bias is not None
    x = torch.randn(2, 5, 70, requires_grad=True)
    goal = torch.randn(2, 5, 24)
    module(x).mul(goal).sum().backward()
    plain = x.detach().clone().requires_grad_()
    bias = module.bias.detach().clone().requires_grad_()
    functional.linear(plain, weight, bias).mul(goal).sum().backward()
    assert x.grad is not None
    assert plain.grad is not None
    assert relative_error(x.grad, plain.grad) < 1e-5
    assert torch.allclose(module.bias.grad, bias.grad)  # type: ignore[arg-type]  # both have one


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's own first dual
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_function_transforms_and_tangents_are_those_of_the_weight_that_is_held(form: str, with_gradients: bool) -> None:
    module, weight = packed_linear(FORMS[form], 24, 70, bias=True)
    assert module.bias is not None
    bias = module.bias.detach()
    x, tangent = torch.randn(5, 70), torch.randn(5, 70)
    with torch.set_grad_enabled(with_gradients):
        value, moved = torch.func.jvp(module, (x,), (tangent,))
        assert torch.allclose(value, functional.linear(x, weight, bias), atol=1e-4)
        assert torch.allclose(moved, tangent @ weight.T, atol=1e-4)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent)))
        assert torch.allclose(dual.tangent, tangent @ weight.T, atol=1e-4)
    ones = torch.ones(5, 24)
    assert torch.allclose(torch.func.vjp(module, x)[1](ones)[0], ones @ weight, atol=1e-4)
    rows = torch.func.vmap(module)(x)
    assert torch.allclose(rows, functional.linear(x, weight, bias), atol=1e-4)
    assert module(x).shape == (5, 24), "and afterwards it is what it was"


# -- surgery -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["tied", "untied", "bias"])
def model(request: pytest.FixtureRequest) -> CohereForCausalLM:
    fields: dict[str, dict[str, Any]] = {
        "tied": {"use_qk_norm": True},
        "untied": {"tie_word_embeddings": False},
        "bias": {"attention_bias": True, "num_key_value_heads": 2},
    }
    return make_ours(hidden_size=64, **fields[request.param])


@pytest.mark.parametrize("way", CONFIGS)
def test_a_quantized_model_is_near_the_plain_one_with_its_weights(model: CohereForCausalLM, way: str) -> None:
    quantized = quantize_model(copy.deepcopy(model), CONFIGS[way])
    assert isinstance(quantized.lm_head, QuantizedLinear)
    assert isinstance(quantized.model.embed_tokens, QuantizedEmbedding)
    assert quantized.config.quantization_config == CONFIGS[way]
    plain = dequantize_model(copy.deepcopy(quantized), torch.float32)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert relative_error(logits(quantized), logits(plain)) < 0.05  # activations are rounded to 8 bits
    assert relative_error(logits(quantized), logits(model)) < (0.1 if way == "int8" else 0.7)
    assert quantized.num_parameters() == model.num_parameters()
    assert quantized.num_parameters(exclude_embeddings=True) == model.num_parameters(exclude_embeddings=True)
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in quantized.modules())
    assert {parameter.dtype for parameter in quantized.parameters()} == {torch.float32}


def test_a_tied_head_is_the_embedding_wherever_the_model_goes() -> None:
    quantized = quantize_model(make_ours(hidden_size=64), "int4")
    for one in (quantized, copy.deepcopy(quantized), quantized.to(torch.float64).float()):
        assert one.lm_head.weight_packed is one.model.embed_tokens.weight_packed
        assert one.lm_head.weight_scale is one.model.embed_tokens.weight_scale


def test_scales_keep_their_type_and_results_have_the_model_s() -> None:
    quantized = quantize_model(make_ours(hidden_size=64), "int4")
    before = {name: buffer.clone() for name, buffer in quantized.named_buffers()}
    quantized.to(torch.bfloat16)
    assert quantized.dtype == quantized.model.norm.weight.dtype == logits(quantized).dtype == torch.bfloat16
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantized.named_buffers())


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        ({"head": False}, {"lm_head"}),
        ({"embeddings": False}, {"model.embed_tokens"}),
        ({"modules_to_not_convert": ("down_proj",)}, {f"model.layers.{i}.mlp.down_proj" for i in range(2)}),
        (
            {"modules_to_not_convert": ("model.layers.1.self_attn", "lm_head")},
            {f"model.layers.1.self_attn.{x}_proj" for x in "qkvo"} | {"lm_head"},
        ),
    ],
)
def test_modules_are_left_alone_by_name(config: dict[str, Any], plain: set[str]) -> None:
    model = quantize_model(make_ours(hidden_size=64, tie_word_embeddings=False), QuantizationConfig(**config))
    assert {name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)} == plain
    assert torch.isfinite(logits(model)).all()


def test_what_cannot_be_quantized() -> None:
    model = make_ours(hidden_size=64)
    for config in ({"head": False}, {"modules_to_not_convert": ["model.embed_tokens"]}):
        with pytest.raises(InputError, match="are one tensor"):
            quantize_model(model, QuantizationConfig(**config))  # type: ignore[arg-type]  # fields by name
    with pytest.raises(InputError, match="needs calibration text"):
        quantize_model(model, QuantizationConfig(method="gptq"))
    model.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"model\.embed_tokens: .*infinities or NaNs"):
        quantize_model(model, "int8")
    quantized = quantize_model(make_ours(hidden_size=64), "int8")
    with pytest.raises(InputError, match=r"quantized already, as QuantizationConfig\(format='int8'"):
        quantize_model(quantized, "int8")
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize_model(make_ours(hidden_size=64), QuantizationConfig(modules_to_not_convert=("model", "lm_head")))
    with pytest.raises(InputError, match="resize it before"):
        quantized.resize_token_embeddings(120)
    with pytest.raises(InputError, match="nothing to dequantize"):
        make_ours().dequantize()


def test_a_gradient_passes_through_a_whole_model() -> None:
    quantized = quantize_model(make_ours(hidden_size=64), "int4")
    quantized.enable_input_require_grads()
    quantized.gradient_checkpointing_enable()
    quantized.train()
    loss = quantized(IDS, labels=IDS).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in quantized.parameters())
    plain = quantized.dequantize()
    expected = torch.autograd.grad(plain(IDS, labels=IDS).loss, plain.model.norm.weight)[0]
    found = plain.model.norm.weight.grad
    assert found is not None
    assert float(functional.cosine_similarity(found, expected, dim=0)) > 0.99


# -- the embedded model ------------------------------------------------------------------------------------

TEXT = "Plants create energy through a process known as photosynthesis. They take in light, water and air."


@pytest.fixture(scope="module")
def text_ids() -> Tensor:
    from quarterdeck import AutoTokenizer

    ids: Tensor = AutoTokenizer.from_pretrained("midshipman")(TEXT, return_tensors="pt")["input_ids"]
    return ids


@pytest.mark.parametrize(("way", "worse"), [("int8", 1.02), ("int4", 1.35), ("asymmetric", 1.35)])
def test_the_embedded_model_stays_good_at_its_texts(text_ids: Tensor, way: str, worse: float) -> None:
    plain = AutoModelForCausalLM.from_pretrained("midshipman")
    quantized = AutoModelForCausalLM.from_pretrained("midshipman", quantization_config=CONFIGS[way])
    with torch.no_grad():
        perplexities = [float(one(text_ids, labels=text_ids).loss.exp()) for one in (plain, quantized)]
    assert perplexities[1] < worse * perplexities[0]
    ratio = quantized.get_memory_footprint() / plain.get_memory_footprint()
    assert ratio < (0.27 if way == "int8" else 0.15)
    with torch.no_grad():
        past = quantized(text_ids[:, :-3], use_cache=True).past_key_values
        cached = quantized(text_ids[:, -3:], past_key_values=past).logits
    # what differs by a rounding error before activations are rounded to 8 bits can differ by a step after
    assert relative_error(cached, logits(quantized, text_ids)[:, -3:]) < 0.05


# -- configurations ----------------------------------------------------------------------------------------


def every_config() -> Iterator[QuantizationConfig]:
    yield from CONFIGS.values()
    yield QuantizationConfig("int8", group_size=32)
    yield QuantizationConfig(symmetric=False, group_size=32, module_formats=(("lm_head", "int8"), ("x", "int8-32")))
    yield QuantizationConfig(method="gptq", head=False, embeddings=False, modules_to_not_convert=("lm_head", "x"))


def test_configurations_survive_a_file() -> None:
    for config in every_config():
        written = config.to_dict()
        assert written["quant_method"] == "quarterdeck"
        assert as_quantization(written) == config
    assert as_quantization("int8") == as_quantization({"format": "int8"}) == CONFIGS["int8"]
    pairs = {"lm_head": "int8", "x": "int8-32"}
    assert as_quantization({"module_formats": pairs}) == QuantizationConfig(module_formats=tuple(pairs.items()))
    assert QuantizationConfig(module_formats=[["x", "int8"]]).module_formats == (("x", "int8"),)  # type: ignore[arg-type]  # as JSON has it
    assert [as_quantization(config) for config in every_config()] == list(every_config())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "int3"}, "must be one of int8, int4"),
        ({"method": "awq"}, "must be one of round-to-nearest, gptq"),
        ({"group_size": 128}, "has groups of 32: leave it out"),
        ({"format": "int8", "group_size": 64}, "one scale for a row or groups of 32: leave it out"),
        ({"format": "int8", "symmetric": False}, "8-bit weights are symmetric"),
        ({"head": 1}, "must be True or False"),
        ({"module_formats": {"x": "Q8_0"}}, "name and one of int8, int8-32, int4,"),
        ({"method": "gptq", "format": "int8", "group_size": 32}, "leave out group_size"),
        ({"method": "gptq", "module_formats": (("x", "int8"),)}, "one for all modules"),
        ({"modules_to_not_convert": "lm_head"}, "a list of names"),
        ({"modules_to_not_convert": None}, "a list of names"),
        ({"module_formats": None}, "module_formats is None, but must have pairs"),
        ({"module_formats": (3,)}, "module_formats has 3, but must have pairs"),
        ({"module_formats": ((3, "int8"),)}, "module_formats has"),
        ({"module_formats": (("x", ["int8"]),)}, "module_formats has"),
    ],
)
def test_configurations_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizationConfig(**fields)


def test_what_is_unknown_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOptionError, match="has no 'bits'; it has format"):
        as_quantization({"quant_method": "quarterdeck", "bits": 4})
    with pytest.raises(UnsupportedOptionError, match="version 2"):
        as_quantization({"quant_method": "quarterdeck", "format_version": 2})
    with pytest.raises(UnsupportedOptionError, match="quantized by 'awq' are not read"):
        as_quantization({"quant_method": "awq", "bits": 4})
    with pytest.raises(InputError, match="must be one of int8, int4"):
        as_quantization("q4_0")
    with pytest.raises(InputError, match="give a format's name"):
        as_quantization(4)
    assert replace(CONFIGS["int4"], method="gptq").bits_per_weight == 4.5


def test_modules_tell_what_they_are(tmp_path: Path) -> None:
    quantized = quantize_model(make_ours(hidden_size=64), "int8")
    assert "64 -> 99, int8" in repr(quantized.lm_head)
    assert len(packed_modules(quantized)) == 2 * 7 + 2


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_program_has_no_breaks(form: str) -> None:
    module, _ = packed_linear(FORMS[form], 24, 70, bias=True)
    table = QuantizedEmbedding(FORMS[form], 24, 70, 0, torch.float32)
    table.set_tensors(module.tensors)

    def both(ids: Tensor) -> Tensor:
        return module(table(ids))

    ids = torch.tensor([[3, 17, 23]])
    with torch.no_grad():
        assert torch.equal(torch.compile(both, backend="eager", fullgraph=True)(ids), both(ids))
