"""Writing checkpoints: shards, and a whole checkpoint in the folder at every moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from parity import make_ours
from quarterdeck.errors import InputError
from quarterdeck.locate import HubOptions
from quarterdeck.quantization.surgery import quantize_model
from quarterdeck.weights import save
from quarterdeck.weights.index import find_weights
from quarterdeck.weights.reader import CheckpointTensors
from quarterdeck.weights.save import parse_size, replacing_checkpoint, split_into_shards, write_weights

CPU = torch.device("cpu")
ONE_FILE, PAIRS, SINGLES = 10_000, 32, 16  # bytes per shard: all, two or one of the four tensors of 16 bytes


def tensors(value: float) -> dict[str, Tensor]:
    return {name: torch.full((4,), value) for name in "abcd"}


def put(folder: Path, value: float, size: int) -> None:
    with replacing_checkpoint(folder) as staging:
        write_weights(tensors(value), staging, size)
        (staging / "config.json").write_text(str(value))


def read(folder: Path) -> dict[str, float]:
    """The value in each tensor."""
    source = CheckpointTensors(find_weights(folder, HubOptions()))
    return {name: source.tensor(name, None, CPU).unique().item() for name in source.names()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Crash(BaseException):
    """The end of the process, which nothing in it can catch."""


@contextmanager
def crash_at_change(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[str]]:
    """Stops at the ``number``-th change that is made to files; yields the list of those before it."""
    made: list[str] = []

    def counted(what: str, function: Any) -> Any:
        def change(*args: Any, **options: Any) -> Any:
            if len(made) == number:
                raise Crash
            made.append(f"{what} {args[0]}")
            return function(*args, **options)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted("rename", Path.replace))
        patch.setattr(Path, "unlink", counted("remove", Path.unlink))
        patch.setattr(Path, "hardlink_to", counted("link", Path.hardlink_to))
        patch.setattr(save, "write_aligned", counted("write", save.write_aligned))
        patch.setattr(save.shutil, "rmtree", lambda *args, **options: None)  # a dead process does not tidy up
        yield made


def test_one_file_or_shards_with_an_index(tmp_path: Path) -> None:
    write_weights(tensors(1.0), tmp_path, ONE_FILE)
    assert names(tmp_path) == ["model.safetensors"]
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    write_weights(tensors(1.0), sharded, PAIRS)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(sharded) == [*shards, "model.safetensors.index.json"]
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 64},
        "weight_map": {"a": shards[0], "b": shards[0], "c": shards[1], "d": shards[1]},
    }
    with safe_open(sharded / shards[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tensor_larger_than_a_shard_is_one_by_itself() -> None:
    given = {"a": torch.zeros(1), "b": torch.zeros(100), "c": torch.zeros(1), "d": torch.zeros(1)}
    assert [list(shard) for shard in split_into_shards(given, 8)] == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("2 kib", 2048), ("1GiB", 2**30), ("7", 7), (123, 123), ("1TB", 10**12)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 parsecs", "-1GB", 0, "0GB", -3, "0.1"])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(InputError, match="max_shard_size is"):
        parse_size(text)


def test_any_layout_and_shared_memory(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    write_weights({"a": matrix.T, "b": matrix, "c": matrix[1], "d": matrix}, tmp_path, ONE_FILE)
    source = CheckpointTensors(find_weights(tmp_path, HubOptions()))
    assert source.tensor("a", None, CPU).tolist() == matrix.T.tolist()
    assert source.tensor("c", None, CPU).tolist() == [3, 4, 5]
    assert source.tensor("d", None, CPU).tolist() == matrix.tolist()


def offsets(path: Path) -> dict[str, int]:
    """Where each tensor begins in a file, by the format's description."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_tensors_of_a_quantized_checkpoint_are_aligned(tmp_path: Path, quantization: str) -> None:
    model = quantize_model(make_ours(hidden_size=64, vocab_size=91), quantization)  # 91 scales of rows are 364 bytes
    model.save_pretrained(tmp_path)
    held = model.state_dict()
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == held.keys() - {name for name in held if name.startswith("lm_head")}
    for name, tensor in found.items():
        assert torch.equal(tensor, held[name]), name
    begins = offsets(tmp_path / "model.safetensors")
    uneven = [name for name in begins if held[name].nbytes % 64]
    assert all(begin % 64 == 0 for name, begin in begins.items() if name not in uneven)
    assert len(uneven) < len(begins) / 2
    read = CheckpointTensors(find_weights(tmp_path, HubOptions()))
    assert all(read.tensor(name, None, CPU).data_ptr() % 64 == 0 for name in begins if name.endswith("packed"))


def test_tensors_of_every_type_and_of_odd_sizes_are_written(tmp_path: Path) -> None:
    floating = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    whole = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]
    given = {f"x{size}.{kind}": torch.ones(size, 3).to(kind) for size in (1, 7, 64) for kind in [*floating, *whole]}
    given |= {'\u00e4 "b"': torch.tensor([True, False]), "empty": torch.empty(0, 4), "number": torch.tensor(2.5)}
    write_weights(given, tmp_path, 10**9)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tolist() == tensor.tolist(), name
    begins = offsets(tmp_path / "model.safetensors")
    assert all(begins[name] % given[name].itemsize == 0 for name in begins)
    assert all(begin % 64 == 0 for name, begin in begins.items() if name.startswith("x64"))


def test_types_that_files_do_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a is torch\.complex64, and safetensors files hold F64"):
        write_weights({"a": torch.zeros(1, dtype=torch.complex64)}, tmp_path, ONE_FILE)
    with pytest.raises(InputError, match=r"the value of a is torch\.float16 \[2\], but must be torch\.float32"):
        write_weights({"a": torch.zeros(2, device="meta")}, tmp_path, ONE_FILE, {"a": torch.zeros(2).half()})


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights"):
        write_weights({}, tmp_path, ONE_FILE)
    with pytest.raises(InputError, match="1 weights, b among them, are on the meta device"):
        write_weights({"a": torch.zeros(1), "b": torch.zeros(1, device="meta")}, tmp_path, ONE_FILE)
    assert names(tmp_path) == []


SIZES = [(old, new) for old in (ONE_FILE, PAIRS, SINGLES) for new in (ONE_FILE, PAIRS, SINGLES)]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_second_save_replaces_the_first_and_leaves_nothing_behind(tmp_path: Path, old: int, new: int) -> None:
    put(tmp_path / "twice", 1.0, old)
    (tmp_path / "twice" / "tokenizer.json").write_text("{}")
    put(tmp_path / "twice", 2.0, new)
    put(tmp_path / "once", 2.0, new)
    assert read(tmp_path / "twice") == dict.fromkeys("abcd", 2.0)
    assert names(tmp_path / "twice") == sorted([*names(tmp_path / "once"), "tokenizer.json"])


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_at_every_moment_there_is_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int
) -> None:
    """The process may die before any change to any file: what is there is all old or all new, and can be replaced."""
    seen = set()
    for moment in range(1000):
        folder = tmp_path / str(moment)
        put(folder, 1.0, old)
        try:
            with crash_at_change(monkeypatch, moment):
                put(folder, 2.0, new)
        except Crash:
            values = read(folder)
            assert list(values) == list("abcd")
            assert len(set(values.values())) == 1, f"a mixture after {moment} changes"
            seen |= set(values.values())
            put(folder, 3.0, new)
            assert read(folder) == dict.fromkeys("abcd", 3.0)
        else:
            break
    assert moment >= 2
    assert 1.0 in seen


def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1.0, PAIRS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = []

    def full_disk(path: Path, *others: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr(save, "write_aligned", full_disk)
    monkeypatch.setattr(save, "_flush", lambda path: None)
    with pytest.raises(OSError, match="no space left"):
        put(tmp_path, 2.0, PAIRS)
    assert len(written) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(self: Path, target: Path) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    put(tmp_path, 1.0, PAIRS)
    put(tmp_path, 2.0, PAIRS)
    assert read(tmp_path) == dict.fromkeys("abcd", 2.0)


def test_a_damaged_checkpoint_can_be_replaced(tmp_path: Path) -> None:
    put(tmp_path, 1.0, PAIRS)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    put(tmp_path, 2.0, PAIRS)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    put(tmp_path, 3.0, PAIRS)
    assert read(tmp_path) == dict.fromkeys("abcd", 3.0)


@pytest.mark.parametrize("size", [ONE_FILE, PAIRS])
def test_tensors_mapped_from_a_file_survive_its_replacement(tmp_path: Path, size: int) -> None:
    put(tmp_path, 1.0, size)
    source = CheckpointTensors(find_weights(tmp_path, HubOptions()))
    mapped = {name: source.tensor(name, None, CPU) for name in source.names()}
    doubled = {name: tensor + 1 for name, tensor in mapped.items()}
    with replacing_checkpoint(tmp_path) as staging:
        write_weights(doubled | {"a": mapped["a"]}, staging, size)
    assert all(tensor.unique().tolist() == [1] for tensor in mapped.values())
    assert read(tmp_path) == {"a": 1.0, "b": 2.0, "c": 2.0, "d": 2.0}


def test_files_are_readable_by_whom_the_process_would_let_read(tmp_path: Path) -> None:
    put(tmp_path, 1.0, ONE_FILE)
    reference = tmp_path / "reference"
    reference.write_text("")
    assert os.stat(tmp_path / "model.safetensors").st_mode == os.stat(reference).st_mode
