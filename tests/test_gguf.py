"""GGUF files: the container against the `gguf` package, the metadata, and what is damaged or foreign."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_support import SHAPE, foreign_file, made
from quarterdeck import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CohereConfig
from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError, InputError
from quarterdeck.gguf.container import TYPES, GGUFFile, NewTensor, write_container
from quarterdeck.gguf.metadata import config_metadata, config_values
from quarterdeck.gguf.names import from_gguf, to_gguf

gguf = pytest.importorskip("gguf")

pytest_plugins = ["checkpoint_fixtures"]


@pytest.fixture(scope="module")
def tiny_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(checkpoint, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "Q8_0")


# -- the container -----------------------------------------------------------------------------------------


def test_the_package_reads_what_is_written_here(tiny_file: Path) -> None:
    ours, theirs = GGUFFile(tiny_file), gguf.GGUFReader(tiny_file)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert fields == ours.metadata
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor, entry in zip(theirs.tensors, ours.tensors.values(), strict=True):
        assert (tensor.data_offset, tensor.n_bytes) == (entry.offset, entry.nbytes)
        assert (tensor.tensor_type.name, tuple(tensor.shape[::-1])) == (entry.kind.name, entry.shape)


def test_types_of_values_are_those_that_llama_cpp_wants(tiny_file: Path) -> None:
    fields = gguf.GGUFReader(tiny_file).fields
    kinds = gguf.GGUFValueType
    for key, kind in {
        "command-r.context_length": kinds.UINT32,
        "command-r.logit_scale": kinds.FLOAT32,
        "command-r.rope.freq_base": kinds.FLOAT32,
        "tokenizer.ggml.add_bos_token": kinds.BOOL,
        "general.file_type": kinds.UINT32,
    }.items():
        assert fields[key].types == [kind], key
    assert fields["tokenizer.ggml.token_type"].types == [kinds.ARRAY, kinds.INT32]
    assert fields["tokenizer.ggml.merges"].types == [kinds.ARRAY, kinds.STRING]


def test_values_of_every_kind_of_the_package_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "x")
    numbers = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "int32": -70000, "uint64": 2**60, "int64": -9}
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(f"k.{name}", value)
    writer.add_float64("k.f64", 0.1)
    writer.add_bool("k.bool", True)
    writer.add_array("k.floats", [0.5, 2.0])
    writer.add_array("k.texts", ["é", ""])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    found = GGUFFile(tmp_path / "all.gguf").metadata
    assert {name: found[f"k.{name}"] for name in numbers} == numbers
    assert (found["k.f64"], found["k.bool"], found["k.floats"]) == (0.1, True, [0.5, 2.0])
    assert found["k.texts"] == ["é", ""]


def test_a_file_cut_off_anywhere_says_so(tiny_file: Path, tmp_path: Path) -> None:
    whole, path = tiny_file.read_bytes(), tmp_path / "cut.gguf"
    begin = min(entry.offset for entry in GGUFFile(tiny_file).tensors.values())
    last = max(entry.offset + entry.nbytes for entry in GGUFFile(tiny_file).tensors.values())
    for length in (0, 3, 20, 30, begin // 3, begin // 2, begin - 40, begin + 5, last - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointCorruptError, match=r"truncated|no GGUF file"):
            GGUFFile(path)


@pytest.mark.parametrize(
    ("place", "data", "message"),
    [
        (0, b"GGML", "no GGUF file: it begins with b'GGML'"),
        (4, b"\x00\x00\x00\x03", "version 50331648 of GGUF"),
        (4, b"\x01\x00\x00\x00", "version 1 of GGUF"),
        (24, b"\xff" * 8, "more than there are"),
        (16, b"\xff" * 8, "truncated or damaged"),
    ],
)
def test_a_damaged_header_says_so(tiny_file: Path, tmp_path: Path, place: int, data: bytes, message: str) -> None:
    whole = bytearray(tiny_file.read_bytes())
    whole[place : place + len(data)] = data
    (tmp_path / "bad.gguf").write_bytes(whole)
    with pytest.raises(CheckpointCorruptError, match=message):
        GGUFFile(tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    ("sizes", "message"), [((2**62, 4), "header tells of"), ((2**32, 2**32), "header tells of"), ((4, 0), "is empty")]
)
def test_sizes_that_cannot_be_say_so(tmp_path: Path, sizes: tuple[int, int], message: str) -> None:
    """Products of sizes are not those of 64 bits, where these two are zero."""
    entry = struct.pack("<QsI2QIQ", 1, b"t", 2, *sizes, TYPES["F32"].number, 0)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry + bytes(64))
    with pytest.raises(CheckpointCorruptError, match=message):
        GGUFFile(tmp_path / "bad.gguf")


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "iq.gguf", "command-r")
    raw = np.zeros((2, 66), np.uint8)
    writer.add_tensor("output_norm.weight", raw, raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointCorruptError, match="number 16, which is not read; there are F32, F16"):
        GGUFFile(tmp_path / "iq.gguf")


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    tensor = NewTensor("t", (2, 40), TYPES["Q4_0"], [])
    with (tmp_path / "x.gguf").open("wb") as file, pytest.raises(InputError, match="rows of 40; Q4_0 needs a multiple"):
        write_container(file, {}, [tensor])


# -- the configuration -------------------------------------------------------------------------------------


def test_a_configuration_comes_back_to_the_last_bit(checkpoint: Path, tiny_file: Path) -> None:
    ours, original = AutoConfig.from_pretrained(tiny_file), AutoConfig.from_pretrained(checkpoint)
    assert ours.to_dict() == original.to_dict() | {"dtype": "bfloat16", "architectures": original.architectures}


@pytest.mark.parametrize("name", CohereConfig.preset_names())
def test_public_configurations_survive(name: str, tmp_path: Path) -> None:
    config = CohereConfig.preset(name)
    keys = config_metadata(config.to_dict(), context_length=config.context_length, head_dim=config.head_dim)
    shape = (config.vocab_size, config.hidden_size)
    empty = NewTensor("token_embd.weight", shape, TYPES["F16"], [])
    norm = [NewTensor("blk.0.attn_q_norm.weight", (1,), TYPES["F32"], [bytes(4)])] if config.use_qk_norm else []
    path = tmp_path / "x.gguf"
    # without our own text first, as llama.cpp's converter writes it
    for metadata in ({key: value for key, value in keys.items() if not key.startswith("quarterdeck")}, keys):
        with path.open("wb") as file, pytest.raises(AssertionError):  # the data are left out
            write_container(file, {"general.architecture": "command-r"} | metadata, [*norm, empty])
        with path.open("rb+") as file:
            file.truncate(2**34)  # nothing is stored of it
        found = CohereConfig.from_pretrained(path)
        for field in "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split():
            assert getattr(found, field) == getattr(config, field)
        for field in "logit_scale rope_theta layer_norm_eps use_qk_norm vocab_size context_length head_dim".split():
            assert getattr(found, field) == pytest.approx(getattr(config, field), rel=1e-7), field
        assert found.layer_norm_eps == 1e-5
    assert found.logit_scale == config.logit_scale
    assert found.max_position_embeddings == config.max_position_embeddings


def test_common_keys_count_where_our_own_text_disagrees(tiny_file: Path, checkpoint: Path) -> None:
    file = GGUFFile(tiny_file)
    file.metadata |= {"command-r.rope.freq_base": 5e5, "command-r.context_length": 99, "tokenizer.ggml.eos_token_id": 3}
    found = CohereConfig.from_dict(config_values(file))
    assert (found.rope_theta, found.context_length, found.eos_token_id) == (5e5, 99, 3)
    assert found.initializer_range == CohereConfig.from_pretrained(checkpoint).initializer_range


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9},
    ],
)
def test_rope_scaling_is_kept(tmp_path: Path, scaling: dict[str, Any]) -> None:
    values = CohereConfig(**SHAPE, rope_scaling=scaling).to_dict()
    keys = config_metadata(values, context_length=64, head_dim=64)
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        write_container(file, {"general.architecture": "command-r"} | keys | {"quarterdeck.config": "{}"}, [])
    assert config_values(GGUFFile(path))["rope_scaling"] == scaling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"head_dim": 32}, "head_dim=32"),
        ({"use_qk_norm": True}, "use_qk_norm=True in 2 layers"),
        ({"num_hidden_layers": 64}, "use_qk_norm=False in 64 layers"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
    ],
)
def test_what_such_a_file_cannot_say_is_refused(changes: dict[str, Any], message: str) -> None:
    config = CohereConfig(**(SHAPE | changes))
    with pytest.raises(InputError, match=message):
        config_metadata(config.to_dict(), context_length=64, head_dim=config.head_dim)


def test_other_architectures_and_missing_keys_are_refused_by_name(tmp_path: Path) -> None:
    for name, keys, message in (
        ("llama", {}, "architecture 'llama'; Quarterdeck runs 'command-r'"),
        ("command-r", {}, "lacks the metadata command-r.embedding_length"),
        ("command-r", {"command-r.embedding_length": 8}, "command-r.block_count"),
    ):
        path = tmp_path / "x.gguf"
        with path.open("wb") as file:
            write_container(file, {"general.architecture": name} | keys, [])
        for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
            with pytest.raises((ConfigError, CheckpointCorruptError), match=message):
                load(path)


def test_names_go_both_ways() -> None:
    assert from_gguf("blk.12.ffn_gate.weight") == "model.layers.12.mlp.gate_proj.weight"
    assert from_gguf("rope_freqs.weight") == "rope_freqs.weight"
    assert to_gguf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    for name in ("blk.0.attn_q_norm.weight", "token_embd.weight", "output_norm.weight", "output.weight"):
        assert to_gguf(from_gguf(name)) == name


# -- where the file is -------------------------------------------------------------------------------------


def test_a_file_is_named_in_two_ways(tiny_file: Path) -> None:
    for args, options in (
        ((tiny_file,), {}),
        ((str(tiny_file),), {}),
        ((tiny_file.parent,), {"gguf_file": tiny_file.name}),
    ):
        assert AutoConfig.from_pretrained(*args, **options).hidden_size == 32
        assert len(AutoTokenizer.from_pretrained(*args, **options)) > 8
        assert AutoModelForCausalLM.from_pretrained(*args, **options).num_parameters() > 0


def test_a_file_that_is_not_there_or_named_wrongly(tiny_file: Path, checkpoint: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"there is no file '.*none\.gguf'"):
        AutoConfig.from_pretrained(tiny_file.parent / "none.gguf")
    with pytest.raises(CheckpointNotFoundError, match=r"there is no x\.gguf in"):
        AutoTokenizer.from_pretrained(checkpoint, gguf_file="x.gguf")
    for name, wrong in ((tiny_file, tiny_file.name), (checkpoint, "model.bin"), (checkpoint, "")):
        with pytest.raises(InputError, match=r"must be the name of a file NAME\.gguf inside a folder"):
            AutoModelForCausalLM.from_pretrained(name, gguf_file=wrong)


def test_a_file_of_the_gguf_package_has_no_tokenizer_here(tmp_path: Path) -> None:
    foreign_file(tmp_path / "x.gguf", {})
    assert AutoConfig.from_pretrained(tmp_path / "x.gguf").vocab_size == SHAPE["vocab_size"]
    with pytest.raises(ValueError, match="holds no tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path / "x.gguf")
