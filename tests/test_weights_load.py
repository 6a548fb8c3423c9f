"""Finding, reading and loading weights, on small plain modules."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quarterdeck.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
)
from quarterdeck.locate import HubOptions
from quarterdeck.weights.index import WeightFiles, find_weights
from quarterdeck.weights.load import LoadReport, Naming, load_weights
from quarterdeck.weights.reader import CheckpointTensors, MemoryTensors, SafetensorsFile, first_floating_dtype

CPU = torch.device("cpu")


class Net(nn.Module):
    """An embedding under a prefix, and a head that may be tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "norm": nn.LayerNorm(4)})
        self.lm_head = nn.Linear(4, 5, bias=False)


NAMING = Naming(prefix="model.", head=frozenset({"lm_head.weight"}))
TIED = Naming("model.", frozenset({"lm_head.weight"}), {"lm_head.weight": "model.embed.weight"})


def on_cpu(name: str) -> torch.device:
    return CPU


def on_meta(build: type[nn.Module] = Net) -> nn.Module:
    with torch.device("meta"):
        return build()


def sevens(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.constant_(parameter, 7.0)


def load(model: nn.Module, tensors: dict[str, Tensor], naming: Naming = NAMING, **options: bool) -> LoadReport:
    return load_weights(
        model, MemoryTensors(tensors), naming=naming, dtype=None, place=on_cpu, initialise=sevens, **options
    )


def write(folder: Path, **shards: dict[str, Tensor]) -> Path:
    """Shards and an index that tells where each tensor is."""
    weight_map = {}
    for shard, tensors in shards.items():
        save_file(tensors, folder / f"{shard}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


# -- finding ---------------------------------------------------------------------------------------------


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    write(tmp_path, shard={"a": torch.zeros(1)})
    found = find_weights(tmp_path, HubOptions())
    assert found == WeightFiles([tmp_path / "shard.safetensors"], {"a": "shard.safetensors"})
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert find_weights(tmp_path, HubOptions()) == WeightFiles([tmp_path / "model.safetensors"])


def test_a_missing_shard(tmp_path: Path) -> None:
    write(tmp_path, one={"a": torch.zeros(1)}, two={"b": torch.zeros(1)})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"index.json names 2 shards, but there is no two.safetensors"):
        find_weights(tmp_path, HubOptions())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "model.pkl"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointUnsafeError, match=f"only as {name}.*never opens them.*safetensors"):
        find_weights(tmp_path, HubOptions())


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    with pytest.raises(CheckpointUnsafeError, match=r"pytorch_model.bin"):
        find_weights(tmp_path, HubOptions())


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        find_weights(tmp_path, HubOptions())
    with pytest.raises(CheckpointNotFoundError, match="folder 'sub'"):
        find_weights(tmp_path, HubOptions(subfolder="sub"))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b.safetensors"}}'],
)
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors\.index\.json"):
        find_weights(tmp_path, HubOptions())


# -- reading ---------------------------------------------------------------------------------------------


def test_a_truncated_file_tells_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(
        CheckpointCorruptError, match=rf"model.safetensors is truncated.* {len(whole)} .*{len(whole) - 100}"
    ):
        SafetensorsFile(path)
    path.write_bytes(whole + b"0")
    with pytest.raises(CheckpointCorruptError, match=f"too long.* {len(whole)} bytes, it has {len(whole) + 1}"):
        SafetensorsFile(path)
    path.write_bytes(whole[:40])
    with pytest.raises(CheckpointCorruptError, match=r"truncated.* it has 40"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file.* 0 bytes"),
        (b"\xff" * 64, "is no safetensors file.* 64 bytes"),
        (b"PK\x03\x04" + b"\0" * 100, "is no safetensors file"),
        (struct.pack("<Q", 9) + b'{"a": 1}x', "is no safetensors file, or its beginning is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorruptError, match=message):
        SafetensorsFile(path)


def test_an_index_that_places_a_tensor_wrongly(tmp_path: Path) -> None:
    write(tmp_path, one={"a": torch.zeros(1)}, two={"b": torch.zeros(1)})
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointCorruptError, match=r"places 'b' in .*one.safetensors"):
        CheckpointTensors(find_weights(tmp_path, HubOptions()))


def test_tensors_are_windows_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.arange(3)}, path)
    file = SafetensorsFile(path)
    window = file.tensor("a", torch.float32, CPU)
    assert window.data_ptr() == file.tensor("a", None, CPU).data_ptr()
    window += 1  # changed in memory, not in the file
    assert SafetensorsFile(path).tensor("a", None, CPU).tolist() == [0, 1, 2, 3]
    assert file.tensor("a", torch.bfloat16, CPU).dtype == torch.bfloat16
    assert file.tensor("b", torch.bfloat16, CPU).dtype == torch.int64
    assert file.shape("a") == (4,)


def test_the_first_floating_type() -> None:
    source = MemoryTensors({"ids": torch.zeros(1, dtype=torch.int64), "a": torch.zeros(1, dtype=torch.float16)})
    assert first_floating_dtype(source) == torch.float16
    assert first_floating_dtype(MemoryTensors({"ids": torch.zeros(1, dtype=torch.int64)})) is None


# -- loading ---------------------------------------------------------------------------------------------


def test_weights_take_the_places_of_parameters() -> None:
    weights = dict(Net().state_dict())
    model = on_meta()
    model.get_parameter("lm_head.weight").requires_grad = False
    report = load(model, weights)
    assert report == LoadReport()
    assert model.get_parameter("lm_head.weight").data_ptr() == weights["lm_head.weight"].data_ptr()
    assert isinstance(model.get_parameter("lm_head.weight"), nn.Parameter)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, True, False]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_what_does_not_fit_is_listed_whole() -> None:
    weights = dict(Net().state_dict())
    del weights["model.norm.weight"]
    weights |= {"model.extra": torch.zeros(2), "model.norm.bias": torch.zeros(3)}
    with pytest.raises(CheckpointMismatchError) as caught:
        load(on_meta(), weights)
    message = str(caught.value)
    assert "1 missing in the checkpoint (strict=False initialises them):\n    model.norm.weight (4,)" in message
    assert "1 unknown to the model (strict=False leaves them out):\n    model.extra (2,)" in message
    assert "model.norm.bias: (3,), but (4,) in the model" in message
    assert "ignore_mismatched_sizes=True" in message


def test_opting_out_of_strictness_initialises_what_is_missing_and_only_that() -> None:
    weights = dict(Net().state_dict())
    norm_bias = weights["model.norm.bias"] + 3
    weights |= {"model.norm.bias": norm_bias, "model.extra": torch.zeros(2)}
    del weights["model.norm.weight"]
    model = on_meta()
    report = load(model, weights, strict=False)
    assert model.get_parameter("model.norm.weight").tolist() == [7, 7, 7, 7]
    assert torch.equal(model.get_parameter("model.norm.bias"), norm_bias)
    assert report.as_dict() == {
        "missing_keys": ["model.norm.weight"],
        "unexpected_keys": ["model.extra"],
        "mismatched_keys": [],
        "error_msgs": [],
    }


def test_sizes_are_ignored_only_on_request() -> None:
    weights = dict(Net().state_dict()) | {"lm_head.weight": torch.zeros(6, 4)}
    with pytest.raises(CheckpointMismatchError, match=r"lm_head.weight: \(6, 4\), but \(5, 4\) in the model"):
        load(on_meta(), weights, strict=False)
    model = on_meta()
    report = load(model, weights, ignore_mismatched_sizes=True)
    assert report.mismatched == [("lm_head.weight", (6, 4), (5, 4))]
    assert model.get_parameter("lm_head.weight").shape == (5, 4)
    assert model.get_parameter("lm_head.weight").unique().tolist() == [7]


def test_base_into_head_and_head_into_base() -> None:
    net = Net()
    base = dict(net.model.state_dict())
    head = dict(net.state_dict())
    model = on_meta()
    assert load(model, base | {"lm_head.weight": head["lm_head.weight"]}) == LoadReport()
    assert torch.equal(model.get_parameter("model.embed.weight"), base["embed.weight"])
    with pytest.raises(CheckpointMismatchError, match=r"lm_head.weight \(5, 4\)"):
        load(on_meta(), base)
    alone = on_meta().model
    assert isinstance(alone, nn.ModuleDict)
    assert load(alone, head) == LoadReport()
    assert torch.equal(alone.get_parameter("embed.weight"), base["embed.weight"])


def test_tied_weights_come_under_either_name_or_both() -> None:
    weights = dict(Net().state_dict())
    embedding = weights["model.embed.weight"]
    for names in (["model.embed.weight"], ["lm_head.weight"], ["model.embed.weight", "lm_head.weight"]):
        given = {name: tensor for name, tensor in weights.items() if "norm" in name} | dict.fromkeys(names, embedding)
        model = on_meta()
        assert load(model, given, TIED) == LoadReport()
        assert torch.equal(model.get_parameter("model.embed.weight"), embedding)


def test_tied_weights_that_differ_are_an_error() -> None:
    weights = dict(Net().state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"lm_head.weight and model.embed.weight"):
        load(on_meta(), weights, TIED)
    model = on_meta()
    load(model, weights, TIED, strict=False)
    assert torch.equal(model.get_parameter("model.embed.weight"), weights["model.embed.weight"])


def test_rotary_frequencies_of_old_files_are_no_weights() -> None:
    weights = dict(Net().state_dict())
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    weights["model.rotary_emb.inv_freq"] = torch.zeros(2)
    assert load(on_meta(), weights) == LoadReport()
    with pytest.raises(CheckpointMismatchError, match="inv_freq_scaled"):
        load(on_meta(), weights | {"model.rotary_emb.inv_freq_scaled": torch.zeros(2)})


def test_buffers_are_loaded_too() -> None:
    model = on_meta(lambda: nn.BatchNorm1d(3))  # type: ignore[arg-type]
    weights = nn.BatchNorm1d(3).state_dict() | {"running_mean": torch.arange(3.0)}
    assert load(model, dict(weights), Naming()) == LoadReport()
    assert model.get_buffer("running_mean").tolist() == [0, 1, 2]
    assert not isinstance(model.get_buffer("running_mean"), nn.Parameter)


def test_initialising_one_weight_keeps_the_buffers_beside_it() -> None:
    model = on_meta(lambda: nn.BatchNorm1d(3))  # type: ignore[arg-type]
    weights = dict(nn.BatchNorm1d(3).state_dict()) | {"running_mean": torch.arange(3.0)}
    del weights["weight"]
    load(model, weights, Naming(), strict=False)
    assert model.get_buffer("running_mean").tolist() == [0, 1, 2]
    assert model.get_parameter("weight").tolist() == [7, 7, 7]
    assert model.get_parameter("bias").tolist() == [0, 0, 0]


def test_types_change_one_by_one_and_whole_numbers_stay() -> None:
    weights = dict(nn.BatchNorm1d(3).state_dict())
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    load_weights(model, MemoryTensors(weights), naming=Naming(), dtype=torch.bfloat16, place=on_cpu, initialise=sevens)
    assert model.weight.dtype == torch.bfloat16
    assert model.num_batches_tracked is not None
    assert model.num_batches_tracked.dtype == torch.int64


def test_each_weight_goes_to_its_place_and_what_has_none_is_not_read() -> None:
    model, asked = on_meta(), []

    def place(name: str) -> torch.device:
        asked.append(name)
        return torch.device("meta" if name == "lm_head.weight" else "cpu")

    report = load_weights(
        model, MemoryTensors(Net().state_dict()), naming=NAMING, dtype=None, place=place, initialise=sevens
    )
    assert sorted(asked) == sorted(model.state_dict()) == sorted(report.found.values())
    assert [name for name, tensor in model.named_parameters() if tensor.is_meta] == ["lm_head.weight"]


def test_what_is_nowhere_gets_memory_although_its_place_has_none() -> None:
    model = on_meta()
    weights = {name: tensor for name, tensor in Net().state_dict().items() if name != "lm_head.weight"}
    meta = torch.device("meta")
    load_weights(
        model,
        MemoryTensors(weights),
        naming=NAMING,
        dtype=torch.float64,
        place=lambda name: meta,
        initialise=sevens,
        strict=False,
    )
    assert model.get_parameter("lm_head.weight").unique().tolist() == [7]
    assert model.get_parameter("model.embed.weight").is_meta
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


class Halves(nn.Module):
    """A layer whose weights are kept in another form: stands for a quantized one."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(5))
        self.register_buffer("packed", torch.empty(5, 4, dtype=torch.float16))


class Halver:
    """Receives the weight of ``lm_head``."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: list[torch.device] = []

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"lm_head.weight": (5, 4)}

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        assert name == "lm_head.weight"
        self.places.append(device)
        self.model.get_submodule("lm_head").packed = tensor.half().to(device)


def with_halves(bias: Tensor | None) -> tuple[nn.Module, dict[str, Tensor]]:
    with torch.device("meta"):
        model = Net()
        model.lm_head = Halves()  # type: ignore[assignment]
    weights = Net().state_dict()
    return model, weights | ({} if bias is None else {"lm_head.bias": bias})


def test_a_receiver_gets_tensors_in_place_of_parameters() -> None:
    model, weights = with_halves(torch.ones(5))
    receiver = Halver(model)
    load_weights(
        model,
        MemoryTensors(weights),
        naming=NAMING,
        dtype=torch.float64,
        place=on_cpu,
        initialise=sevens,
        receiver=receiver,
    )
    assert receiver.places == [CPU]
    assert torch.equal(model.get_buffer("lm_head.packed"), weights["lm_head.weight"].half())
    assert model.get_parameter("lm_head.bias").tolist() == [1] * 5
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_a_receiver_is_not_given_values_that_are_made_up() -> None:
    model, weights = with_halves(torch.ones(5))
    del weights["lm_head.weight"]
    options = {"naming": NAMING, "dtype": None, "place": on_cpu, "initialise": sevens, "receiver": Halver(model)}
    with pytest.raises(CheckpointMismatchError, match="missing in the checkpoint"):
        load_weights(model, MemoryTensors(weights), **options)  # type: ignore[arg-type]
    with pytest.raises(CheckpointMismatchError, match="without quantization"):
        load_weights(model, MemoryTensors(weights), strict=False, **options)  # type: ignore[arg-type]


def test_what_is_read_once_is_the_stored_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3)}, tmp_path / "model.safetensors")
    source = CheckpointTensors(find_weights(tmp_path, HubOptions()))
    assert source.once("a").tolist() == MemoryTensors({"a": torch.arange(3)}).once("a").tolist() == [0, 1, 2]
    assert source.once("a").data_ptr() != source.tensor("a", None, CPU).data_ptr()
