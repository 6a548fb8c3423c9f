"""``quarterdeck bench``: its counts against others' counts, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quarterdeck import CohereConfig, CohereForCausalLM, QuantizedCache, StaticCache
from quarterdeck.cli.main import main
from quarterdeck.cli.measuring import CACHE_OPTIONS, prefill_operations, seconds, step_bytes
from quarterdeck.memory.sizes import CacheKind
from quarterdeck.quantization.surgery import quantize_model

FIELDS: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 7,
}


def test_operations_are_those_that_torch_counts() -> None:
    model = CohereForCausalLM(CohereConfig(**FIELDS, attn_implementation="eager"))
    batch, prompt = 3, 20
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(0, 90, (batch, prompt)), logits_to_keep=1)
    head = 2 * batch * 90 * 32
    square = 2 * 2 * batch * prompt**2 * 32 * 2  # eager computes all of it: two products in each of two layers
    own = prefill_operations(model, batch, prompt)
    norms = 2 * batch * prompt * 3 * 32  # counted as weights, though they are no products
    assert own - norms == counter.get_total_flops() - head - square / 2


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_step_are_weights_and_cache(tied: bool) -> None:
    model = CohereForCausalLM(CohereConfig(**FIELDS, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        cache = model(torch.randint(0, 90, (2, 11)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    read = sum(parameter.nbytes for name, parameter in model.named_parameters() if tied or "embed_tokens" not in name)
    assert step_bytes(model, 2, 11) == held + read


def test_the_first_call_is_not_counted() -> None:
    calls: list[int] = []
    assert seconds(lambda: calls.append(1), torch.device("cpu"), repeats=3) >= 0
    assert len(calls) == 4


def test_json_has_a_line_for_each_length_and_number(capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench --prompt 9,5 --batch 2 --new 2 --repeats 1 --quantization int8 --device cpu --json"
    assert main(command.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["quantization"], found["dtype"]) == ("midshipman", "int8", "bfloat16")
    assert [(one["batch"], one["prompt"], one["new"]) for one in found["speeds"]] == [(2, 9, 2), (2, 5, 2)]
    for one in found["speeds"]:
        assert one["decode_tokens"] * one["step_seconds"] == pytest.approx(2)
        assert one["prefill_tokens"] * one["prefill_seconds"] == pytest.approx(2 * one["prompt"])
    assert all(value > 0 for value in found["limits"].values() if value is not None)


def test_a_checkpoint_says_itself_how_it_is_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize_model(CohereForCausalLM(CohereConfig(**FIELDS)), "int4").save_pretrained(tmp_path)
    command = f"bench {tmp_path} --prompt 4 --batch 1 --new 1 --repeats 1 --device cpu"
    assert main(command.split()) == 0
    assert "parameters, int4, " in capsys.readouterr().out.splitlines()[0]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("bench --prompt 4 --batch 1 --new 1 --repeats 1 --device cpu --dtype float32".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "float32" in lines[0]
    assert "GB/s read" in lines[1]
    assert lines[-1].split()[:2] == ["1", "4"]


@pytest.mark.parametrize(
    ("kind", "cache"), [("static", StaticCache), ("int8", QuantizedCache), ("int4", QuantizedCache)]
)
def test_the_cache_that_is_named_is_the_one_that_is_measured(
    kind: CacheKind, cache: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[dict[str, Any]] = []
    steps = CohereForCausalLM.generate_steps

    def noted(self: CohereForCausalLM, ids: torch.Tensor, **options: Any) -> Any:
        used.append(options)
        return steps(self, ids, **options)

    monkeypatch.setattr(CohereForCausalLM, "generate_steps", noted)
    assert main([*"bench --prompt 9 --batch 1 --new 2 --repeats 1 --device cpu --kv-cache".split(), kind]) == 0
    assert f"{kind} cache" in capsys.readouterr().out.splitlines()[0]
    model, ids = CohereForCausalLM(CohereConfig(**FIELDS)).eval(), torch.randint(0, 90, (1, 200))
    assert len(used) == 2
    for options in used:
        assert options.items() >= CACHE_OPTIONS[kind].items()
        made = model.generate(ids, return_dict_in_generate=True, **options | {"max_new_tokens": 1}).past_key_values
        assert type(made) is cache
        assert not isinstance(made, QuantizedCache) or made.storage.nbits == int(kind.removeprefix("int"))
    exact, held = (step_bytes(model, 1, 4000, one) for one in ("dynamic", kind))
    assert held == exact if kind == "static" else held < exact


def test_what_has_no_room_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--prompt", "4000"]) == 2
    assert "this model has room for 2048" in capsys.readouterr().err
    assert main(["bench", "--prompt", "0"]) == 2
