"""Models from GGUF files: their numbers are those that the `gguf` package reads, and types that can run packed do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguf_support import foreign_file, made
from hub_stand_in import HubStandIn, hub_in_place
from quarterdeck import LLM, AutoModel, AutoModelForCausalLM, AutoTokenizer, QuantizationConfig
from quarterdeck.cli.main import main
from quarterdeck.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointNotFoundError
from quarterdeck.gguf.container import GGUFFile, NewTensor, write_container
from quarterdeck.quantization.modules import packed_modules

gguf = pytest.importorskip("gguf")

pytest_plugins = ["checkpoint_fixtures"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
K_MIX = dict(zip(LINEARS, ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q4_K", "Q6_K"), strict=True))
FIVES = dict(zip(LINEARS, ("Q5_1", "Q5_0", "Q5_1", "Q5_0", "F32", "Q5_0", "Q5_1"), strict=True))
PACKED_MIX = dict(zip(LINEARS, ("Q4_1", "Q8_0", "Q4_0", "Q8_0", "Q8_0", "Q8_0", "Q4_1"), strict=True))
IDS = torch.tensor([[5, 9, 33, 2, 40]])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


def weights(model: Any) -> dict[str, Tensor]:
    """All weights in float32, the packed ones as they are multiplied."""
    found = {name: weight.detach().float() for name, weight in model.named_parameters()}
    return found | {
        f"{name}.weight": module.dequantized(torch.float32) for name, module in packed_modules(model).items()
    }


def check_weights(model: Any, expected: dict[str, np.ndarray]) -> None:
    found = weights(model)
    for name, values in expected.items():
        assert np.array_equal(found[name].numpy(), values), name


@pytest.mark.parametrize("kinds", [K_MIX | {"embed_tokens": "Q6_K"}, FIVES | {"embed_tokens": "Q5_0"}])
def test_blocks_become_the_numbers_that_they_stand_for(tmp_path: Path, kinds: dict[str, str]) -> None:
    kinds = {name: kind for name, kind in kinds.items() if kind != "F32"}
    expected = foreign_file(tmp_path / "x.gguf", kinds, use_qk_norm=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf")
    assert model.quantization is None
    assert not hasattr(model.config, "quantization_config")
    check_weights(model, expected)
    state = {name: torch.from_numpy(values) for name, values in expected.items()}
    same = AutoModelForCausalLM.from_pretrained(None, config=model.config, state_dict=state)
    assert torch.equal(logits(model), logits(same))


def test_q4_0_runs_in_its_4_bits_without_loss(tmp_path: Path) -> None:
    expected = foreign_file(tmp_path / "x.gguf", dict.fromkeys(LINEARS, "Q4_0") | {"embed_tokens": "Q6_K"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf")
    assert {name.rpartition(".")[2] for name in packed_modules(model)} == set(LINEARS)
    assert model.quantization == QuantizationConfig(embeddings=False, head=False)
    check_weights(model, expected)
    base = AutoModel.from_pretrained(tmp_path / "x.gguf")
    assert len(packed_modules(base)) == len(packed_modules(model)) == 14


@pytest.mark.parametrize(
    ("kinds", "config"),
    [
        (dict.fromkeys((*LINEARS, "embed_tokens"), "Q8_0"), QuantizationConfig("int8", group_size=32)),
        (
            dict.fromkeys(LINEARS, "Q4_1") | {"embed_tokens": "Q6_K"},
            QuantizationConfig("int4", False, 32, embeddings=False, head=False),
        ),
        (
            PACKED_MIX | {"embed_tokens": "Q4_1"},
            QuantizationConfig(
                "int8",
                group_size=32,
                module_formats=(
                    ("down_proj", "int4-asymmetric-32"), ("embed_tokens", "int4-asymmetric-32"),
                    ("lm_head", "int4-asymmetric-32"), ("q_proj", "int4-asymmetric-32"), ("v_proj", "int4"),
                ),
            ),
        ),
    ],
    ids=["Q8_0", "Q4_1", "mixed"],
)  # fmt: skip
def test_types_of_32_columns_run_as_they_are(tmp_path: Path, kinds: dict[str, str], config: QuantizationConfig) -> None:
    """Weights equal the package's to the last bit; products differ by what rounding activations to 8 bits does."""
    expected = foreign_file(tmp_path / "x.gguf", kinds)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf")
    assert model.quantization == config
    check_weights(model, expected)
    state = {name: torch.from_numpy(values) for name, values in expected.items()}
    plain = copy.copy(model.config)
    del plain.quantization_config
    full = AutoModelForCausalLM.from_pretrained(None, config=plain, state_dict=state)
    assert full.quantization is None
    assert (logits(model) - logits(full)).norm() < 0.03 * logits(full).norm()
    packed = {name: module for name, module in packed_modules(model).items() if name != "lm_head"}  # which is tied
    stored = sum(tensor.nbytes for module in packed.values() for tensor in module.tensors.values())
    numbers = sum(full.get_parameter(f"{name}.weight").numel() for name in packed)
    assert stored * 8 <= numbers * (8.5 if config.format == "int8" else 5.0)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.quantization == config
    assert torch.equal(logits(model), logits(again))


def test_a_quantized_embedding_and_the_tied_head_are_one(tmp_path: Path) -> None:
    expected = foreign_file(tmp_path / "x.gguf", {"embed_tokens": "Q4_0", "up_proj": "Q4_0"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf")
    packed = packed_modules(model)
    assert packed["lm_head"].tensors.keys() == packed["model.embed_tokens"].tensors.keys()
    for leaf, tensor in packed["lm_head"].tensors.items():
        assert tensor is packed["model.embed_tokens"].tensors[leaf]
    check_weights(model, expected)
    assert model.quantization is not None
    assert set(model.quantization.modules_to_not_convert) == set(LINEARS) - {"up_proj"}


@pytest.mark.parametrize(("kind", "count"), [("Q6_K", 3), ("Q8_0", 4)])
def test_layers_of_different_types_are_told_apart(tmp_path: Path, kind: str, count: int) -> None:
    """As in files whose first and last layers have more bits; saved, the same modules are quantized again."""
    expected = foreign_file(tmp_path / "b.gguf", {"up_proj": "Q4_0", "down_proj": "Q4_0"})
    other = foreign_file(tmp_path / "c.gguf", {"up_proj": kind, "down_proj": "Q4_0"})
    name = "model.layers.1.mlp.up_proj.weight"
    expected[name] = other[name]
    _replace(tmp_path / "b.gguf", tmp_path / "c.gguf", "blk.1.ffn_up.weight", tmp_path / "mixed.gguf")
    for load in (AutoModelForCausalLM, AutoModel):
        model = load.from_pretrained(tmp_path / "mixed.gguf")
        assert len(packed_modules(model)) == count
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed.gguf")
    check_weights(model, expected)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(model), logits(again))


def _replace(source: Path, other: Path, name: str, target: Path) -> None:
    """``source`` with one tensor of ``other``."""
    tensors = []
    for path in (source, other):
        for entry in GGUFFile(path).tensors.values():
            if (entry.name == name) == (path == other):
                with path.open("rb") as file:
                    file.seek(entry.offset)
                    tensors.append(NewTensor(entry.name, entry.shape, entry.kind, [file.read(entry.nbytes)]))
    with target.open("wb") as file:
        write_container(file, GGUFFile(source).metadata, tensors)


def test_another_form_may_be_asked_for(tmp_path: Path) -> None:
    kinds = {"up_proj": "Q4_0", "down_proj": "Q4_K", "embed_tokens": "Q6_K"}
    expected = foreign_file(tmp_path / "x.gguf", kinds)
    four = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf", quantization_config="int4")
    up = "model.layers.0.mlp.up_proj.weight"
    assert len(packed_modules(four)) == 16  # linears, embedding, head
    assert np.array_equal(weights(four)[up].numpy(), expected[up])  # what is in 4 bits stays as it is
    eight = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf", quantization_config="int8")
    state = {name: torch.from_numpy(values) for name, values in expected.items()}
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf").config
    del config.quantization_config
    same = AutoModelForCausalLM.from_pretrained(None, config=config, state_dict=state, quantization_config="int8")
    assert torch.equal(logits(eight), logits(same))
    kept = QuantizationConfig(modules_to_not_convert=("up_proj",), embeddings=False, head=False)
    some = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf", quantization_config=kept)
    assert not any("up_proj" in name for name in packed_modules(some))
    check_weights(some, {up: expected[up]})


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_types_are_windows_on_the_file(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path = made(checkpoint, tmp_path / "x.gguf", kind)
    original = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    for name, weight in original.named_parameters():
        expected = weight if weight.ndim == 1 else weight.to(model.dtype)
        assert torch.equal(model.get_parameter(name).float(), expected.float()), name
    assert model.generation_config == original.generation_config


def test_parts_of_a_split_file_are_read_together(checkpoint: Path, tmp_path: Path) -> None:
    whole = made(checkpoint, tmp_path / "whole.gguf", "Q8_0")
    paths = split(whole, tmp_path, 3)
    one, parts = (AutoModelForCausalLM.from_pretrained(path) for path in (whole, paths[0]))
    assert torch.equal(logits(one), logits(parts))
    with pytest.raises(CheckpointCorruptError, match=r"part 2 of 3: give the first part"):
        AutoModelForCausalLM.from_pretrained(paths[1], config=one.config)
    paths[2].unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no x-00003-of-00003\.gguf"):
        AutoModelForCausalLM.from_pretrained(paths[0])
    with pytest.raises(CheckpointNotFoundError, match=r"there is no x-00003-of-00003\.gguf"):
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=paths[0].name)


def split(whole: Path, folder: Path, count: int) -> list[Path]:
    """A file as llama.cpp splits one: all keys in the first part."""
    file, data = GGUFFile(whole), whole.read_bytes()
    entries, paths = list(file.tensors.values()), []
    for number in range(count):
        path = folder / f"x-{number + 1:05d}-of-{count:05d}.gguf"
        tensors = [
            NewTensor(entry.name, entry.shape, entry.kind, [data[entry.offset : entry.offset + entry.nbytes]])
            for entry in entries[number::count]
        ]
        metadata = {"split.no": number, "split.count": count} | (file.metadata if number == 0 else {})
        with path.open("wb") as part:
            write_container(part, metadata, tensors)
        paths.append(path)
    return paths


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    yield from hub_in_place(monkeypatch)


def test_a_file_of_the_hub_comes_with_all_its_parts(hub: HubStandIn, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    whole = made(checkpoint, tmp_path / "whole.gguf", "Q8_0")
    paths = split(whole, tmp_path / "repository", 2)
    hub.add_folder("tests/tiny-GGUF", tmp_path / "repository")
    options = {"gguf_file": paths[0].name, "cache_dir": tmp_path / "cache"}
    model = AutoModelForCausalLM.from_pretrained("tests/tiny-GGUF", **options)
    tokenizer = AutoTokenizer.from_pretrained("tests/tiny-GGUF", **options)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(whole)))
    assert tokenizer("Ahoy").input_ids == AutoTokenizer.from_pretrained(checkpoint)("Ahoy").input_ids
    assert {path.rpartition("/")[2] for path in hub.paths() if path.endswith(".gguf")} == {path.name for path in paths}


def test_tensors_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    foreign_file(tmp_path / "x.gguf", {})
    file = GGUFFile(tmp_path / "x.gguf")
    tensors = [
        NewTensor(entry.name.replace("blk.1.ffn_up", "rope_freqs"), entry.shape, entry.kind, [bytes(entry.nbytes)])
        for entry in file.tensors.values()
    ]
    with (tmp_path / "y.gguf").open("wb") as out:
        write_container(out, file.metadata, tensors)
    with pytest.raises(CheckpointMismatchError, match=r"(?s)layers\.1\.mlp\.up_proj\.weight.*rope_freqs\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "y.gguf")


def test_weights_on_the_disk(tmp_path: Path) -> None:
    """Blocks are written out once as numbers; plain types are read from the file itself at each use."""
    foreign_file(tmp_path / "x.gguf", {"up_proj": "Q8_0"})
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "x.gguf")
    places = {"": "cpu", "model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "x.gguf", device_map=places, offload_folder=tmp_path / "off"
    )
    assert torch.equal(logits(model), logits(expected))


def test_llm_and_commands_take_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made("midshipman", tmp_path / "m.gguf", "BF16")
    expected = LLM().chat("Where do emperor penguins live?")
    assert LLM(path).chat("Where do emperor penguins live?").text == expected.text
    assert main(["run", "--model", str(path), "--temperature", "0", "Ahoy!"]) == 0
    told = capsys.readouterr().out
    assert main(["run", "--temperature", "0", "Ahoy!"]) == 0
    assert told == capsys.readouterr().out
