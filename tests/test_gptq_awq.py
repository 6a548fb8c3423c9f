"""GPTQ and AWQ checkpoints, packed here as their layouts are published: one number after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parity import TINY
from quarterdeck import AutoModel, AutoModelForCausalLM, CohereConfig, CohereForCausalLM, QuantizationConfig
from quarterdeck.errors import CheckpointMismatchError, UnsupportedOptionError
from quarterdeck.quantization.gptq_awq import GroupedLayout, dequantize, unpack
from quarterdeck.quantization.modules import packed_modules
from quarterdeck.weights.convert import open_checkpoint

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, "damp_percent": 0.1}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
SHAPE = TINY | {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}
AWQ_PLACE = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # of eight neighbouring outputs, where each one stands
IDS = torch.tensor([[5, 9, 33, 2, 40]])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


# -- reference packers: the published layouts, in Python's own numbers ---------------------------------------


def word(values: list[int], bits: int) -> int:
    """Values in one number of 32 bits, the first in the lowest ones, as a signed number."""
    number = sum(value << bits * place for place, value in enumerate(values))
    return number - 2**32 if number >= 2**31 else number


def pack_down(matrix: list[list[int]], bits: int) -> Tensor:
    """Neighbouring rows in one number."""
    step = 32 // bits
    return torch.tensor(
        [
            [word([matrix[row + place][column] for place in range(step)], bits) for column in range(len(matrix[0]))]
            for row in range(0, len(matrix), step)
        ],
        dtype=torch.int32,
    )


def pack_along(matrix: list[list[int]], bits: int, place: Mapping[int, int] | None = None) -> Tensor:
    """Neighbouring columns in one number, in the order that ``place`` tells."""
    step = 32 // bits

    def ordered(values: list[int]) -> list[int]:
        return values if place is None else [values[own] for own in sorted(place, key=lambda own: place[own])]

    return torch.tensor(
        [[word(ordered(row[start : start + step]), bits) for start in range(0, len(row), step)] for row in matrix],
        dtype=torch.int32,
    )


class Case:
    """A random weight in one of the layouts: what a checkpoint stores, and the weight ``[N, K]`` that it means."""

    def __init__(
        self, config: Mapping[str, Any], rows: int, columns: int, *, middle: bool, seed: int = 0, shuffled: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        bits = config["bits"]
        size = columns if config["group_size"] == -1 else config["group_size"]
        group = torch.arange(columns) // size
        if shuffled:
            group = group[torch.randperm(columns, generator=generator)]
        groups = int(group.max()) + 1
        values = torch.randint(0, 2**bits, (columns, rows), generator=generator)
        zero = torch.randint(0, 2**bits, (groups, rows), generator=generator)
        if middle:
            zero.fill_(2 ** (bits - 1))
        scale = (torch.rand(groups, rows, generator=generator) * 0.02 + 0.001).half()
        self.weight = ((values - zero[group]).float() * scale.float()[group]).T.contiguous()
        if config["quant_method"] == "awq":
            self.parts = {
                "qweight": pack_along(values.tolist(), bits, AWQ_PLACE),
                "qzeros": pack_along(zero.tolist(), bits, AWQ_PLACE),
                "scales": scale,
            }
            return
        stored = zero if config.get("checkpoint_format") == "gptq_v2" else (zero - 1) % 2**bits
        self.parts = {
            "qweight": pack_down(values.tolist(), bits),
            "qzeros": pack_along(stored.tolist(), bits),
            "scales": scale,
            "g_idx": group.to(torch.int32),
        }


@pytest.mark.parametrize(
    ("config", "shuffled"),
    [
        (GPTQ, False),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, False),
        (GPTQ | {"desc_act": True}, True),
        (GPTQ | {"bits": 8}, False),
        (GPTQ | {"bits": 2, "group_size": -1}, False),
        (AWQ, False),
        (AWQ | {"group_size": 32}, False),
    ],
)
@pytest.mark.parametrize("middle", [True, False])
def test_layouts_are_unpacked_exactly(config: dict[str, Any], shuffled: bool, middle: bool) -> None:
    case = Case(config, 32, 128, middle=middle, shuffled=shuffled)
    layout = GroupedLayout.from_dict(config)
    assert layout.shape(tuple(case.parts["qweight"].shape)) == (32, 128)
    assert torch.equal(dequantize(unpack(case.parts, layout)), case.weight)


def test_a_numbers_bits_by_hand() -> None:
    """One column of eight inputs, 0 to 7: 0x76543210; zero 8 is stored as 7 by the first format."""
    parts = {
        "qweight": torch.tensor([[0x76543210] * 8], dtype=torch.int32),
        "qzeros": torch.tensor([[0x77777777]], dtype=torch.int32),
        "scales": torch.full((1, 8), 0.5).half(),
    }
    weight = dequantize(unpack(parts, GroupedLayout.from_dict(GPTQ | {"group_size": 8})))
    assert weight[0].tolist() == [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]
    # AWQ: one input, outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on
    parts = {
        "qweight": torch.tensor([[0x75316420]], dtype=torch.int32),
        "qzeros": torch.tensor([[0]], dtype=torch.int32),
        "scales": torch.ones(1, 8).half(),
    }
    assert dequantize(unpack(parts, GroupedLayout.from_dict(AWQ)))[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


# -- whole checkpoints -------------------------------------------------------------------------------------


def write(
    folder: Path, config: dict[str, Any], *, middle: bool, shuffled: bool = False, **changes: Any
) -> dict[str, Tensor]:
    """A checkpoint whose linears are quantized; returns the weights that it means."""
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**(SHAPE | changes)))
    model.save_pretrained(folder)
    meant, stored = load_file(folder / "model.safetensors"), {}
    for seed, (name, weight) in enumerate(meant.items()):
        module = name.removesuffix(".weight")
        if not module.endswith("_proj"):
            stored[name] = weight
            continue
        case = Case(config, *weight.shape, middle=middle, seed=seed, shuffled=shuffled)
        meant[name] = case.weight
        stored |= {f"{module}.{part}": tensor.contiguous() for part, tensor in case.parts.items()}
        if config["quant_method"] == "gptq":
            stored[f"{module}.bias"] = torch.zeros(len(weight), dtype=torch.float16)  # as the tools write it
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": config}))
    return meant


def found_weights(model: Any) -> dict[str, Tensor]:
    found = {name: weight.detach().float() for name, weight in model.named_parameters()}
    return found | {
        f"{name}.weight": module.dequantized(torch.float32) for name, module in packed_modules(model).items()
    }


@pytest.mark.parametrize("size", [32, 64, 128, -1])
def test_symmetric_gptq_runs_in_its_4_bits_without_loss(tmp_path: Path, size: int) -> None:
    meant = write(tmp_path / "g", GPTQ | {"group_size": size}, middle=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "g")
    assert model.quantization == QuantizationConfig(embeddings=False, head=False)
    assert len(packed_modules(model)) == 14
    found = found_weights(model)
    assert found.keys() == meant.keys()
    for name, weight in meant.items():
        assert torch.equal(found[name], weight), name
    assert len(packed_modules(AutoModel.from_pretrained(tmp_path / "g"))) == 14
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model))


@pytest.mark.parametrize("size", [32, 128, -1])
def test_symmetric_gptq_runs_in_its_8_bits_without_loss(tmp_path: Path, size: int) -> None:
    meant = write(tmp_path / "g", GPTQ | {"bits": 8, "group_size": size}, middle=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "g")
    assert model.quantization == QuantizationConfig("int8", group_size=32, embeddings=False, head=False)
    assert len(packed_modules(model)) == 14
    found = found_weights(model)
    for name, weight in meant.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("config", [AWQ, AWQ | {"group_size": 32}, GPTQ | {"sym": False}])
def test_zeros_that_differ_become_minima(tmp_path: Path, config: dict[str, Any]) -> None:
    """Off by at most 1/128 of a step, which is what half precision leaves of a minimum of 16 steps."""
    meant = write(tmp_path / "a", config, middle=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    group = config["group_size"]
    assert model.quantization == QuantizationConfig("int4", False, group, embeddings=False, head=False)
    found = found_weights(model)
    for name, module in packed_modules(model).items():
        step = module.packed.scale.float().max()
        error = (found[f"{name}.weight"] - meant[f"{name}.weight"]).abs().max()
        assert error <= step / 128
    plain = AutoModelForCausalLM.from_pretrained(None, config=CohereConfig(**SHAPE), state_dict=meant)
    assert (logits(model) - logits(plain)).abs().mean() < 0.05 * logits(plain).std()


@pytest.mark.parametrize(
    ("config", "shuffled", "middle"),
    [
        (GPTQ | {"desc_act": True}, True, True),
        (GPTQ | {"bits": 8}, False, False),
        (GPTQ | {"bits": 2}, False, True),
        (AWQ | {"group_size": 16}, False, False),
    ],
)
def test_what_the_kernels_do_not_hold_is_loaded_in_full(
    tmp_path: Path, config: dict[str, Any], shuffled: bool, middle: bool
) -> None:
    meant = write(tmp_path / "f", config, middle=middle, shuffled=shuffled)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "f", dtype="float32")
    assert model.quantization is None
    assert not hasattr(model.config, "quantization_config")
    for name, weight in meant.items():
        assert torch.equal(model.get_parameter(name), weight), name
    eight = AutoModelForCausalLM.from_pretrained(tmp_path / "f", quantization_config="int8")
    same = AutoModelForCausalLM.from_pretrained(
        None, config=CohereConfig(**SHAPE), state_dict=meant, quantization_config="int8"
    )
    assert torch.equal(logits(eight), logits(same))


def test_the_rest_is_rounded_where_it_is_asked_for(tmp_path: Path) -> None:
    meant = write(tmp_path / "g", GPTQ, middle=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "g", quantization_config="int4")
    found = found_weights(model)
    assert len(packed_modules(model)) == 16
    for name, weight in meant.items():
        assert torch.equal(found[name], weight) == (name != "model.embed_tokens.weight"), name


def test_biases_that_say_something_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "g", GPTQ, middle=True, attention_bias=True)
    stored = load_file(tmp_path / "g" / "model.safetensors")
    stored["model.layers.0.self_attn.q_proj.bias"] += 0.5
    save_file(stored, tmp_path / "g" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "g")
    assert bool((model.model.layers[0].self_attn.q_proj.bias == 0.5).all())
    stored["model.layers.0.mlp.up_proj.bias"] += 0.5
    save_file(stored, tmp_path / "g" / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"unknown to the model[\s\S]*mlp\.up_proj\.bias"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "g")


def test_such_a_checkpoint_can_be_converted(tmp_path: Path) -> None:
    from quarterdeck import AutoTokenizer

    meant = write(tmp_path / "g", GPTQ, middle=True)
    AutoTokenizer.from_pretrained("midshipman").save_pretrained(tmp_path / "g")
    source = open_checkpoint(tmp_path / "g").source
    assert {name: source.shape(name) for name in source.names()} == {n: tuple(w.shape) for n, w in meant.items()}
    for name in source.names():
        assert torch.equal(source.once(name).float(), meant[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits=3"),
        ({"group_size": None}, "group_size=None"),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": "128"}, "group_size='128'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        ({"is_marlin_format": True}, "is_marlin_format=True"),
        ({"dynamic": {"-:lm_head": {}}}, "dynamic="),
        ({"quant_method": "awq", "version": "gemv"}, "version='gemv'"),
        ({"quant_method": "awq", "checkpoint_format": "gemv_fast"}, "checkpoint_format='gemv_fast'"),
        ({"quant_method": "awq", "bits": 8}, "bits=8"),
    ],
)
def test_other_layouts_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=message):
        GroupedLayout.from_dict(GPTQ | changes)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    case, layout = Case(GPTQ, 32, 128, middle=True), GroupedLayout.from_dict(GPTQ)
    for change in ({"scales": case.parts["scales"][:, :8]}, {"g_idx": case.parts["g_idx"][:9]}):
        with pytest.raises(CheckpointMismatchError, match="which do not fit"):
            unpack(case.parts | change, layout)
    with pytest.raises(CheckpointMismatchError, match="has 2 groups of inputs"):
        unpack(case.parts | {"g_idx": case.parts["g_idx"] + 5}, layout)
    CohereForCausalLM(CohereConfig(**SHAPE)).save_pretrained(tmp_path)
    config = CohereConfig(**SHAPE, quantization_config=GPTQ)
    with pytest.raises(CheckpointMismatchError, match=r"quantized by 'gptq', and there are none \(X\.qweight\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
