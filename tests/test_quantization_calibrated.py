"""GPTQ and the error reports, held against what they are defined by; and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import make_ours, random_ids
from quarterdeck import AutoTokenizer, CohereForCausalLM, QuantizationConfig
from quarterdeck.cli.main import main
from quarterdeck.errors import InputError
from quarterdeck.kernels import int4
from quarterdeck.kernels.int4 import Int4Weight
from quarterdeck.quantization import gptq as gptq_module
from quarterdeck.quantization.calibration import quantization_steps
from quarterdeck.quantization.formats import format_of, full_weight, tensors_of
from quarterdeck.quantization.gptq import best_grid, gptq
from quarterdeck.quantization.modules import packed_modules
from quarterdeck.quantization.surgery import quantize_model

CONFIGS = {
    "int8": QuantizationConfig(format="int8", method="gptq"),
    "int4": QuantizationConfig(method="gptq"),
    "asymmetric": QuantizationConfig(symmetric=False, method="gptq"),
}


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs whose columns depend on each other and are of very different size, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    return torch.randn(rows, columns, generator=generator) @ mixing


def lost(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    """Norm of the change of the outputs, as a part of theirs."""
    return float((inputs @ (rounded - weight).T).norm() / (inputs @ weight.T).norm())


@pytest.mark.parametrize("shape", [(48, 128), (17, 70)])
@pytest.mark.parametrize("way", CONFIGS)
def test_outputs_change_less_than_by_rounding_to_nearest(way: str, shape: tuple[int, int]) -> None:
    config = CONFIGS[way]
    torch.manual_seed(0)
    weight, seen = torch.randn(shape), correlated(512, shape[1])
    packed = gptq(weight, seen.T @ seen / len(seen), config)
    nearest = full_weight(format_of(config).rounded(weight))
    fresh = seen[torch.randperm(len(seen))][:256] * torch.randn(256, 1)  # of the same kind, not the same
    assert lost(weight, full_weight(packed), fresh) < 0.75 * lost(weight, nearest, fresh)


@pytest.mark.parametrize("way", CONFIGS)
def test_where_columns_are_independent_it_is_rounding_to_nearest_on_its_grid(way: str) -> None:
    weight = torch.randn(20, 70)
    packed = gptq(weight, torch.eye(70), CONFIGS[way])
    grid = best_grid(weight, CONFIGS[way], torch.ones(70))
    scale, offset = grid.spread(70)
    assert torch.equal(full_weight(packed), full_weight(grid.pack(grid.rounded(weight, scale, offset))))


def test_the_grid_has_no_more_error_than_the_full_range() -> None:
    weight, importance = torch.randn(20, 96), torch.rand(96)
    for config in (CONFIGS["int4"], CONFIGS["asymmetric"]):
        grid = best_grid(weight, config, importance)
        scale, offset = grid.spread(96)
        rounded = grid.rounded(weight, scale, offset) * scale + offset
        full = int4.dequantize(int4.pack(*int4.quantize(weight, symmetric=config.symmetric)))
        errors = [float(((one - weight).square() * importance).sum()) for one in (rounded, full)]
        assert errors[0] < errors[1]


def test_columns_that_are_never_seen_and_singular_statistics() -> None:
    weight, seen = torch.randn(20, 64), torch.randn(3, 64)
    seen[:, 10:20] = 0
    packed = gptq(weight, seen.T @ seen, CONFIGS["int4"])
    assert isinstance(packed, Int4Weight)
    assert torch.isfinite(full_weight(packed)).all()
    assert torch.isfinite(full_weight(gptq(weight, torch.zeros(64, 64), CONFIGS["int8"]))).all()
    with pytest.raises(InputError, match="it sees infinities or NaNs"):
        gptq(weight, torch.full((64, 64), torch.inf), CONFIGS["int4"])


@pytest.mark.parametrize("way", CONFIGS)
def test_rows_in_slabs_are_rounded_as_all_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, seen = torch.randn(85, 300, generator=torch.Generator().manual_seed(0)), correlated(512, 300)
    hessian = seen.T @ seen / len(seen)
    whole = tensors_of(gptq(weight, hessian, CONFIGS[way]))
    heights: list[int] = []

    def noted(rows: Tensor, *others: Any) -> Tensor:
        heights.append(len(rows))
        return round_in_order(rows, *others)

    round_in_order = gptq_module._round_in_order
    monkeypatch.setattr(gptq_module, "_round_in_order", noted)
    parts = tensors_of(gptq(weight, hessian, CONFIGS[way], slab=32))
    assert heights == [32, 32, 21]
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


# -- whole models ------------------------------------------------------------------------------------------


def inputs_of(model: CohereForCausalLM, batches: list[Tensor]) -> dict[str, Tensor]:
    """What each linear gets, all texts behind each other."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: found.setdefault(name, []).append(x[0].flatten(0, 1)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for ids in batches:
            model(ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("method", ["round-to-nearest", "gptq"])
@pytest.mark.parametrize("tied", [True, False])
def test_reports_are_what_is_measured(tied: bool, method: Any) -> None:
    model = make_ours(hidden_size=64, attention_bias=True, tie_word_embeddings=tied)
    batches = [random_ids(2, 9), random_ids(1, 17, seed=5)]
    config = QuantizationConfig(method=method, symmetric=False)
    before = {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    seen = inputs_of(model, batches)
    errors = {error.name: error for error in quantization_steps(model, config, batches)}
    assert model.config.quantization_config == config
    assert (errors.keys() == before.keys()) if tied else (errors.keys() == {*before, "model.embed_tokens"})
    for name, module in packed_modules(model).items():
        if name not in errors or name not in before:
            continue
        after = module.dequantized(torch.float32)
        expected = float((after - before[name]).norm() / before[name].norm())
        assert errors[name].weight_error == pytest.approx(expected, rel=1e-4)
    if tied:
        head = lost(before["lm_head"], model.lm_head.dequantized(torch.float32), seen["lm_head"])
        assert errors["lm_head"].output_error == pytest.approx(head, rel=1e-3)


def test_the_first_layer_is_calibrated_with_what_it_gets() -> None:
    model = make_ours(hidden_size=64, tie_word_embeddings=False)
    config = QuantizationConfig(method="gptq", embeddings=False, head=False)
    batches = [random_ids(2, 30)]
    seen = inputs_of(model, batches)["model.layers.0.self_attn.q_proj"]
    weight = model.model.layers[0].self_attn.q_proj.weight
    for error in quantization_steps(model, config, batches):
        assert error.output_error is not None
    expected = full_weight(gptq(weight, seen.T @ seen / len(seen), config))
    found = model.model.layers[0].self_attn.q_proj.dequantized(torch.float32)
    assert float((found != expected).float().mean()) < 0.01  # sums in another order can tip a value
    assert type(model.lm_head) is nn.Linear


def test_the_embedded_model_keeps_more_with_calibration() -> None:
    torch.manual_seed(0)
    start = torch.full((40, 1), 5)  # <BOS_TOKEN>: texts of the model's own
    exact = CohereForCausalLM.from_pretrained("midshipman")
    texts = exact.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=48, do_sample=True)
    calibration, fresh = list(texts[:32, None]), list(texts[32:, None])
    divergences = []
    for method in ("round-to-nearest", "gptq"):
        model = CohereForCausalLM.from_pretrained("midshipman")
        for _ in quantization_steps(model, QuantizationConfig(method=method), calibration):
            pass
        divergence = 0.0
        for ids in fresh:
            with torch.no_grad():
                found, expected = (one(ids).logits.log_softmax(-1) for one in (model, exact))
            divergence += float((expected.exp() * (expected - found)).sum())
        divergences.append(divergence)
    assert divergences[1] < divergences[0]


def test_calibration_that_cannot_be() -> None:
    model = make_ours(hidden_size=64)
    with pytest.raises(InputError, match="needs calibration text"):
        list(quantization_steps(model, CONFIGS["int4"]))
    assert not model.is_quantized
    model.model.layers[1].mlp.down_proj.weight.data[3, 3] = 1e6
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj: 4-bit scales hold infinities or NaNs"):
        list(quantization_steps(model, CONFIGS["int4"], [random_ids(1, 9)]))
    model = make_ours(hidden_size=64, tie_word_embeddings=False)
    model.model.layers[0].input_layernorm.weight.data[:] = torch.inf
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj: of the calibration text it sees infinities"):
        list(quantization_steps(model, CONFIGS["int4"], [random_ids(1, 9)]))


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_writes_what_loading_would_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "midshipman", str(tmp_path / "out"), "--json", "--format", "int8"]) == 0
    report = json.loads(capsys.readouterr().out)
    written = CohereForCausalLM.from_pretrained(tmp_path / "out")
    expected = CohereForCausalLM.from_pretrained("midshipman", quantization_config="int8")
    assert all(torch.equal(one, other) for one, other in zip(written.buffers(), expected.buffers(), strict=True))
    assert written.quantization == QuantizationConfig(format="int8")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is not None
    assert report["bytes_after"] < 0.55 * report["bytes_before"]
    assert len(report["layers"]) == 6 * 7 + 1
    assert all(0 < layer["weight_error"] < 0.02 and layer["output_error"] is None for layer in report["layers"])


def test_the_command_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Plants create energy through a process known as photosynthesis. " * 20)
    options = ["--calibration", str(text), "--row-length", "64", "--rows", "2", "--keep", "down_proj", "--asymmetric"]
    assert main(["quantize", "midshipman", str(tmp_path / "out"), *options]) == 0
    captured = capsys.readouterr()
    shown = captured.out
    assert captured.err.startswith("wrote safetensors in asymmetric int4 by gptq: 7 files, ")
    model = CohereForCausalLM.from_pretrained(tmp_path / "out")
    assert model.quantization == QuantizationConfig(
        symmetric=False, method="gptq", modules_to_not_convert=("down_proj",)
    )
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    assert "model.layers.5.self_attn.o_proj" in shown
    assert "weight error output error" in " ".join(shown.split())
    # asked for by the name of its format, a calibrated checkpoint is that format
    assert CohereForCausalLM.from_pretrained(
        tmp_path / "out",
        quantization_config=QuantizationConfig(symmetric=False, modules_to_not_convert=("down_proj",)),
    ).is_quantized


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--method", "gptq"], 2, "give --calibration FILE"),
        (["--format", "int8", "--asymmetric"], 2, "--asymmetric is for int4"),
        (["--calibration", "EMPTY"], 1, "is empty; calibration needs text"),
        (["--calibration", "BINARY"], 1, "is no UTF-8 text"),
        (["--calibration", "NOWHERE"], 1, "NOWHERE"),
        (["--keep", "model.embed_tokens"], 1, "are one tensor"),
        (["--keep", "lm_heed"], 2, "--keep lm_heed: this model has no module of that name"),
        (["--max-shard-size", "5xb"], 1, "max_shard_size is '5xb'"),
        (["--rows", "5"], 2, "--rows is about text: give --calibration FILE"),
        (["--row-length", "5"], 2, "--row-length is about text"),
        (["--calibration", "LONG", "--row-length", "3000"], 2, "has room for 2048: give --row-length 2048"),
    ],
)
def test_commands_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "LONG").write_text("Penguins live in Antarctica, and swim. " * 400)
    options = [str(tmp_path / word) if word.isupper() else word for word in options]
    assert main(["quantize", "midshipman", str(tmp_path / "out"), *options]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["quantize", "midshipman", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kept", [(), ("up_proj",)])
def test_a_quantized_model_is_not_quantized_again(
    kept: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor are weights that were kept: the new configuration would be said of the others too."""
    config = QuantizationConfig("int8", modules_to_not_convert=kept)
    quantize_model(make_ours(hidden_size=64), config).save_pretrained(tmp_path / "int8")
    assert main(["quantize", str(tmp_path / "int8"), str(tmp_path / "out")]) == 1
    assert "quantized already, as QuantizationConfig(format='int8'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
