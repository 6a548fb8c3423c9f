"""The arithmetic of memory against models without memory, what a plan proposes, and what loading refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gguf_support import made
from quarterdeck import (
    LLM,
    BitsAndBytesConfig,
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    MemoryPlan,
    QuantizationConfig,
    QuantizedCache,
    StaticCache,
    plan_memory,
)
from quarterdeck.cli.main import main
from quarterdeck.errors import InputError, NotEnoughMemoryError
from quarterdeck.memory import loading, machine
from quarterdeck.memory.sizes import cache_bytes, weight_bytes
from quarterdeck.quantization.choose import as_quantization
from quarterdeck.quantization.surgery import replace_modules
from test_gptq_awq import GPTQ, write

GB = 10**9
TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 7,
}


def on_meta(config: CohereConfig) -> CohereForCausalLM:
    with torch.device("meta"):
        return CohereForCausalLM(config)


@pytest.mark.parametrize("name", ["c4ai-command-r-plus", "aya-expanse-8b"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_weights_are_those_of_the_built_model(name: str, quantization: str | None) -> None:
    config = CohereConfig.preset(name)
    config.num_hidden_layers = 2
    model = on_meta(config).to(torch.bfloat16)
    if quantization is not None:
        chosen = as_quantization(quantization)
        assert isinstance(chosen, QuantizationConfig)
        replace_modules(model, chosen)
        model.tie_weights()
    expected = weight_bytes(config, torch.bfloat16, as_quantization(quantization))
    assert expected == model.get_memory_footprint()


@pytest.mark.parametrize("fields", [{"tie_word_embeddings": False}, {"attention_bias": True, "head_dim": 48}])
@pytest.mark.parametrize(
    "quantization",
    [None, QuantizationConfig("int4", symmetric=False, modules_to_not_convert=("up_proj", "model.layers.1"))],
)
def test_weights_of_unusual_models(fields: dict[str, Any], quantization: QuantizationConfig | None) -> None:
    config = CohereConfig(**TINY, **fields)
    model = on_meta(config)
    if quantization is not None:
        replace_modules(model, quantization)
        model.tie_weights()
    assert weight_bytes(config, torch.float32, quantization) == model.get_memory_footprint()


@pytest.mark.parametrize("config", [BitsAndBytesConfig(load_in_4bit=True), BitsAndBytesConfig(load_in_8bit=True)])
def test_weights_in_bitsandbytes(config: BitsAndBytesConfig, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    own = CohereConfig(**TINY)
    CohereForCausalLM(own).save_pretrained(tmp_path)
    model = CohereForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    extra = sum(tensor.nbytes for name, tensor in model.state_dict().items() if "absmax" in name or "SCB" in name)
    assert weight_bytes(own, torch.bfloat16, config) == model.get_memory_footprint() + extra


@pytest.mark.parametrize(
    ("kind", "cache"),
    [
        ("dynamic", DynamicCache()),
        ("static", StaticCache(CohereConfig(**TINY), 320)),
        ("int8", QuantizedCache(nbits=8)),
        ("int4", QuantizedCache(nbits=4)),
    ],
)
def test_cache_is_what_a_cache_holds(kind: Any, cache: Any) -> None:
    config = CohereConfig(**TINY)
    new = torch.randn(2, config.num_key_value_heads, 320, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(new, new.clone(), layer)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in tensors_of(layer))
    small = 8 * config.num_hidden_layers if kind == "static" else 0  # where it has been written to
    assert cache_bytes(config, kind, torch.float32, length=320, batch=2) == held - small


def tensors_of(layer: Any) -> list[torch.Tensor]:
    return layer.tensors() if hasattr(layer, "tensors") and layer.tensors() else [layer.keys, layer.values]


def test_published_sizes() -> None:
    """35 billion weights at 4.5 bits, and the cache of 1.25 MiB per token that v01 is known for."""
    plan = plan_memory("CohereForAI/c4ai-command-r-v01", quantization="int4", context=131072, available=GB)
    assert plan.weights == pytest.approx(34_980_831_232 * 4.5 / 8, rel=1e-3)
    assert plan.cache == 160 * 2**30
    assert (plan.dtype, plan.quantization, plan.device) == ("float16", "int4", "cpu")


def test_remedies_fit_and_say_their_totals() -> None:
    plan = plan_memory("c4ai-command-r-v01", context=8192, available=40 * GB, device="cpu")
    assert not plan.fits
    found = {remedy.change: remedy.total for remedy in plan.remedies}
    assert list(found) == ["--quantization int4"]
    again = plan_memory("c4ai-command-r-v01", context=8192, available=40 * GB, device="cpu", quantization="int4")
    assert again.fits
    assert not again.remedies
    assert found["--quantization int4"] == again.total <= 40 * GB


def test_remedies_may_need_each_other() -> None:
    plan = plan_memory("c4ai-command-r-v01", context=8192, available=24 * GB, device="cpu")
    assert [remedy.change for remedy in plan.remedies] == ["--quantization int4 --kv-cache int4"]
    assert plan.remedies[0].total <= 24 * GB


@pytest.mark.parametrize(("batch", "context", "room"), [(4, 8192, 20 * GB), (1, 8192, 17 * GB)])
def test_remedies_of_length_and_number_are_the_largest(batch: int, context: int, room: int) -> None:
    fixed: dict[str, Any] = {"available": room, "device": "cpu", "dtype": "float16"}
    plan = plan_memory("aya-expanse-8b", context=context, batch_size=batch, **fixed)
    changes = dict(remedy.change.split() for remedy in plan.remedies if remedy.change.count(" ") == 1)
    length = int(changes["--context"])
    assert plan_memory("aya-expanse-8b", context=length, batch_size=batch, **fixed).fits
    assert not plan_memory("aya-expanse-8b", context=length + 1024, batch_size=batch, **fixed).fits
    if batch > 1:
        assert not plan_memory(
            "aya-expanse-8b", context=context, batch_size=int(changes["--batch-size"]) + 1, **fixed
        ).fits


def test_nothing_makes_it_fit() -> None:
    plan = plan_memory("c4ai-command-r-v01", available=GB, device="cpu")
    assert not plan.remedies
    assert "device_map" in str(plan)


def test_weights_that_are_used_as_stored_are_mapped(tmp_path: Path) -> None:
    CohereForCausalLM(CohereConfig(**TINY)).to(torch.bfloat16).save_pretrained(tmp_path)
    plan = plan_memory(tmp_path, device="cpu")
    assert plan.mapped == plan.weights > 0
    assert plan_memory(tmp_path, device="cpu", dtype="float32").mapped == 0
    assert plan_memory(tmp_path, device="cpu", quantization="int8").mapped == 0
    CohereForCausalLM.from_pretrained(tmp_path, dtype="auto", quantization_config="int8").save_pretrained(
        tmp_path / "8"
    )
    stored = plan_memory(tmp_path / "8", device="cpu")
    assert (stored.mapped, stored.quantization) == (stored.weights, "int8")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_gguf_files_are_counted_as_they_are_loaded(kind: str, quantization: str | None, tmp_path: Path) -> None:
    path = made("midshipman", tmp_path / "x.gguf", kind)
    plan = plan_memory(path, device="cpu", quantization=quantization)
    model = CohereForCausalLM.from_pretrained(path, dtype="auto", quantization_config=quantization)
    tensors = {weight.data_ptr(): weight.nbytes for weight in [*model.parameters(), *model.buffers()]}
    assert plan.weights == sum(tensors.values())
    assert plan.quantization == (quantization or {"Q4_0": "int4", "Q8_0": "int8"}.get(kind))
    norms = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("norm.weight"))
    plain = {"F32": plan.weights, "F16": plan.weights - 2 * norms}
    assert plan.mapped == (0 if quantization else plain.get(kind, 0))
    assert plan_memory(str(path), device="cpu", quantization=quantization).weights == plan.weights


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_size": -1},
        {"quant_method": "awq", "group_size": 64},
        {"quant_method": "awq", "group_size": 32},
        {"bits": 8},
        {"group_size": 16},
    ],
)
def test_checkpoints_of_other_tools_are_counted_as_they_are_loaded(
    changes: dict[str, Any], quantization: str | None, tmp_path: Path
) -> None:
    stored = GPTQ | changes
    write(tmp_path, stored, middle=stored["quant_method"] == "gptq")
    plan = plan_memory(tmp_path, device="cpu", dtype="float32", quantization=quantization)
    model = CohereForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    tensors = {weight.data_ptr(): weight.nbytes for weight in [*model.parameters(), *model.buffers()]}
    assert plan.weights == sum(tensors.values())
    assert plan.mapped == 0


def test_a_configuration_of_other_tools_stays_as_it_is() -> None:
    config = CohereConfig(**TINY, quantization_config=GPTQ | {"desc_act": True})
    assert plan_memory(config).quantization is None
    assert config.to_dict()["quantization_config"]["quant_method"] == "gptq"
    with pytest.raises(InputError, match="bits=3"):
        plan_memory(CohereConfig(**TINY, quantization_config=GPTQ | {"bits": 3}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 10**6}, "8192 at most"),
        ({"context": 0}, "context is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"kv_cache": "fp8"}, "kv_cache is 'fp8', but must be one of dynamic"),
        ({"device": "abacus"}, "no kind of device 'abacus'"),
        ({"quantization": "int3"}, "int3"),
    ],
)
def test_what_cannot_be_right_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_memory("aya-expanse-8b", **options)


def test_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "midshipman"]) == 0
    assert "fits" in capsys.readouterr().out
    assert main(["plan", "c4ai-command-r-plus", "--context", "131072", "--device", "cpu", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["cache"] == 32 * 2**30
    assert found["total"] == found["weights"] + found["cache"] + found["workspace"]
    assert not found["fits"]
    assert main(["plan", "midshipman", "--context", "999999"]) == 1
    capsys.readouterr()
    assert main(["plan", str(tmp_path / "nosuch-model")]) == 1
    assert f"known without network are {', '.join(CohereConfig.preset_names())}" in capsys.readouterr().err
    assert main(["plan", str(tmp_path)]) == 1  # a folder, in which a file is missing
    assert "known without network" not in capsys.readouterr().err
    path = made("midshipman", tmp_path / "x.gguf", "Q4_0")
    assert main(["plan", str(path), "--device", "cpu"]) == 0
    assert "bfloat16, int4" in capsys.readouterr().out


def test_loading_refuses_what_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CohereForCausalLM(CohereConfig(**TINY))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    half = model.get_memory_footprint()
    monkeypatch.setattr(loading, "available_memory", lambda device: 2 * half - 1)
    CohereForCausalLM.from_pretrained(tmp_path, dtype="auto")  # pages of the file
    with pytest.raises(NotEnoughMemoryError, match=r"quantization_config='int8'.*check_memory=False"):
        CohereForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert issubclass(NotEnoughMemoryError, MemoryError)
    loaded = CohereForCausalLM.from_pretrained(tmp_path, dtype="float32", check_memory=False)
    assert loaded.dtype == torch.float32
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    CohereForCausalLM.from_pretrained(None, config=model.config, state_dict=state, dtype="float32")  # the caller's own
    monkeypatch.setattr(loading, "available_memory", lambda device: 2 * half)
    CohereForCausalLM.from_pretrained(tmp_path, dtype="float32")


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("Q8_0", torch.float32)])
def test_loading_counts_what_is_made_of_blocks(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("midshipman", tmp_path / "x.gguf", kind)
    model = CohereForCausalLM.from_pretrained(path, dtype=dtype)
    is_norm = {name: name.endswith("norm.weight") for name, _ in model.named_parameters()}  # F32 in all files
    taken = {
        name: weight.nbytes
        for name, weight in model.named_parameters()
        if (kind == "Q8_0" and not is_norm[name]) or (kind == "F16" and is_norm[name])
    }
    needed = sum(taken.values()) + sum(buffer.nbytes for buffer in model.buffers())
    monkeypatch.setattr(loading, "available_memory", lambda device: needed)
    CohereForCausalLM.from_pretrained(path, dtype=dtype)
    assert (needed > 0) == (kind != "F32")
    if needed > 0:
        monkeypatch.setattr(loading, "available_memory", lambda device: needed - 1)
        with pytest.raises(NotEnoughMemoryError, match="loading the weights takes"):
            CohereForCausalLM.from_pretrained(path, dtype=dtype)


def test_llm_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda device: 1000)
    with pytest.raises(NotEnoughMemoryError, match="loading the weights takes"):
        LLM(dtype="float32", device="cpu")
    LLM(dtype="float32", device="cpu", check_memory=False)


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_count(version: int, tmp_path: Path) -> None:
    """A limit of a group around ours counts, less what is used and cannot be dropped."""
    own = tmp_path / "cgroup"
    if version == 2:
        own.write_text("0::/box/inner\n")
        folder, names, prefix = tmp_path, ("memory.max", "memory.current"), ""
    else:
        own.write_text("9:cpu,cpuacct:/other\n4:memory:/box/inner\n0::/\n")
        folder, names, prefix = tmp_path / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
    (folder / "box" / "inner").mkdir(parents=True)
    (folder / "box" / "inner" / names[0]).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    (folder / "box" / "inner" / names[1]).write_text("5000\n")
    (folder / "box" / names[0]).write_text("1000000\n")
    (folder / "box" / names[1]).write_text("700000\n")
    (folder / "box" / "memory.stat").write_text(f"anon 9\n{prefix}inactive_file 40\n{prefix}active_file 2\n")
    assert list(machine.control_group_rooms(own, tmp_path)) == [300042]


def test_available_memory_is_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    host = SimpleNamespace(available=500, total=1000)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: host)
    monkeypatch.setattr(machine, "control_group_rooms", lambda own, mount: iter([400, 600]))
    assert machine.available_memory(torch.device("cpu")) == 400
    assert machine.available_memory(torch.device("meta")) is None


def test_a_plan_is_a_value() -> None:
    one, other = (plan_memory("midshipman", available=GB, device="cpu") for _ in range(2))
    assert one == other
    assert isinstance(one, MemoryPlan)
    with pytest.raises(AttributeError):
        one.weights = 3  # type: ignore[misc]
