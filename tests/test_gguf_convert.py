"""``quarterdeck convert``, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_support import foreign_file
from quarterdeck import AutoModelForCausalLM, AutoTokenizer, CohereConfig
from quarterdeck.cli.main import main
from quarterdeck.errors import CheckpointMismatchError, InputError
from quarterdeck.gguf.container import GGUFFile
from quarterdeck.weights.convert import open_checkpoint, to_gguf_file, to_safetensors

pytest_plugins = ["checkpoint_fixtures"]


def json_files(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_there_and_back_again(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "new" / "x.gguf", tmp_path / "back"
    assert main(["convert", str(checkpoint), str(file)]) == 0
    assert main(["convert", str(file), str(folder), "--to", "safetensors", "--max-shard-size", "20KB"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{file}\n{folder}\n"
    of_file, of_folder = captured.err.splitlines()
    assert of_file == f"wrote GGUF in f32: {file.stat().st_size / 1e6:.1f} MB"
    assert of_folder.startswith(f"wrote safetensors in f32: {len(list(folder.iterdir()))} files, ")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    original = load_file(checkpoint / "model.safetensors")
    found = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(found[name], tensor), name
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    new, old = json_files(folder), json_files(checkpoint) | json_files(tmp_path / "saved")
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert new[name] == old[name], name
    ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (folder, checkpoint))
    assert ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_every_type_is_written(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    assert main(["convert", str(checkpoint), str(path), "--type", kind]) == 0
    kinds = {entry.kind.name for entry in GGUFFile(path).tensors.values()}
    assert kinds == {kind.upper(), "F32"}
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.file_type"].contents() == {
        "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2,
    }[kind]  # fmt: skip
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    weight = AutoModelForCausalLM.from_pretrained(checkpoint).model.embed_tokens.weight.detach().numpy()
    raw = gguf.quants.quantize(weight, table.tensor_type)
    assert np.array_equal(table.data.view(np.uint8), raw.view(np.uint8))


def test_quantized_files_become_plain_ones(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    expected = foreign_file(tmp_path / "x.gguf", {"up_proj": "Q6_K", "down_proj": "Q4_0", "embed_tokens": "Q8_0"})
    tokenizer = AutoTokenizer.from_pretrained("midshipman")
    checkpoint = open_without_tokenizer(tmp_path / "x.gguf", tokenizer)
    to_safetensors(checkpoint, tmp_path / "folder", "F32")
    found = load_file(tmp_path / "folder" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name].numpy(), values), name


def open_without_tokenizer(path: Path, tokenizer: Any) -> Any:
    from quarterdeck.locate import HubOptions
    from quarterdeck.weights.convert import Checkpoint
    from quarterdeck.weights.sources import resolve_source

    return Checkpoint(
        CohereConfig.from_pretrained(path), tokenizer, resolve_source(path, None, HubOptions(), path), None
    )


def test_nothing_is_overwritten(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    for target in ("x.gguf", "folder"):
        assert main(["convert", str(checkpoint), str(tmp_path / target)]) == 2
        assert "is there already; nothing is overwritten" in capsys.readouterr().err
    opened = open_checkpoint(checkpoint)
    with pytest.raises(InputError, match="is there already"):
        to_gguf_file(opened, tmp_path / "x.gguf")
    with pytest.raises(InputError, match="is there already"):
        to_safetensors(opened, tmp_path / "folder")
    assert (tmp_path / "x.gguf").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["out", "--to", "gguf"], "'out' does not end in .gguf"),
        (["out", "--to", "gguf"], "call it 'out.gguf'"),
        (["out.gguf", "--to", "safetensors"], "'out.gguf' ends in .gguf"),
        (["out.bin"], "call it 'out.gguf', or give --to safetensors to make a folder of that name"),
        (["out", "--type", "q8_0"], "--type q8_0 is for GGUF"),
        (["out.gguf", "--type", "q6_k"], "invalid choice: 'q6_k'"),
        (["out.gguf", "--max-shard-size", "1GB"], "--max-shard-size is for safetensors"),
    ],
)
def test_wrong_usage(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "midshipman", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("target", "options"), [("x.bin", ["--to", "safetensors"]), ("x-v1.5", []), ("x-0.5b", [])])
def test_folders_with_dots(checkpoint: Path, tmp_path: Path, target: str, options: list[str]) -> None:
    assert main(["convert", str(checkpoint), str(tmp_path / target), *options]) == 0
    assert (tmp_path / target / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_targets_are_looked_at_before_models(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main([command, str(tmp_path / "no-model"), str(tmp_path / "file" / "one" / "two")]) == 2
    assert f"'{tmp_path / 'file'}' is no folder, and nothing can be made inside it" in capsys.readouterr().err
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert main([command, str(tmp_path / "no-model"), str(tmp_path / "gone")]) == 2
    assert "is there already" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main([command, str(tmp_path / "no-model"), str(tmp_path / "new" / "folder")]) == 2
    assert f"you may not write into '{tmp_path}'" in capsys.readouterr().err


def test_a_failure_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in checkpoint.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 1.0)
    tensors["model.embed_tokens.weight"][3, 4] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight holds numbers that float16 cannot"):
        to_gguf_file(open_checkpoint(folder), tmp_path / "x.gguf", "F16")
    save_file(tensors | {"model.vision.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"1 tensors have no place in a GGUF file: model\.vision\.weight"):
        to_gguf_file(open_checkpoint(folder), tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def changed(checkpoint: Path, folder: Path, tensors: dict[str, torch.Tensor | None]) -> Path:
    """A copy with some tensors changed, added or (None) left out."""
    folder.mkdir()
    for path in checkpoint.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())
    stored: dict[str, torch.Tensor | None] = {**load_file(folder / "model.safetensors"), **tensors}
    left = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.norm.weight": None}, "1 missing in the checkpoint"),
        ({"model.norm.weight": torch.ones(7)}, "model.norm.weight: (7,), but (32,) in the model"),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "is stored as int8"),
        ({"lm_head.weight": torch.ones(729, 32)}, "one tensor in the model, two in the checkpoint"),
        ({"model.vision.weight": torch.ones(2)}, "1 unknown to the model"),
    ],
)
@pytest.mark.parametrize("target", ["x.gguf", "x"])
def test_what_would_not_load_is_not_converted(
    tensors: dict[str, Any], message: str, target: str, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    source = changed(checkpoint, tmp_path / "model", tensors)
    assert main(["convert", str(source), str(tmp_path / target)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / target).exists()


def test_a_tied_weight_may_stand_under_either_name(checkpoint: Path, tmp_path: Path) -> None:
    table = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    source = changed(checkpoint, tmp_path / "m", {"model.embed_tokens.weight": None, "lm_head.weight": table})
    for target in ("x.gguf", "x"):
        assert main(["convert", str(source), str(tmp_path / target)]) == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / target)
        assert torch.equal(model.get_input_embeddings().weight, table)


@pytest.mark.parametrize("target", ["x.gguf", "x"])
def test_rotary_frequencies_of_old_files_are_left_out(target: str, checkpoint: Path, tmp_path: Path) -> None:
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    source = changed(checkpoint, tmp_path / "model", {**frequencies})
    assert main(["convert", str(source), str(tmp_path / target)]) == 0
    again = open_checkpoint(tmp_path / target).source
    assert set(again.names()) == set(load_file(checkpoint / "model.safetensors"))


def test_numbers_that_float16_lacks_are_refused(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    source = changed(checkpoint, tmp_path / "model", {"model.norm.weight": torch.full((32,), 1e6)})
    assert main(["convert", str(source), str(tmp_path / "x"), "--type", "f16"]) == 1
    assert "model.norm.weight holds numbers that float16 cannot" in capsys.readouterr().err
    assert not list((tmp_path / "x").glob("*"))


def test_weights_that_this_package_quantized_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config="int4").save_pretrained(tmp_path / "four")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "four")
    with pytest.raises(InputError, match="quantized by 'quarterdeck': convert the checkpoint that it was made from"):
        open_checkpoint(tmp_path / "four")
